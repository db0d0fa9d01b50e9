"""The tree of the commands of `vla`. Each imports what is heavy only when it runs."""

from typing import Annotated

import typer

from vla_policy_node.cli import bag, contract, dataset, learning, robot
from vla_policy_node.cli import bench as benches
from vla_policy_node.cli.checked import CheckedCommand
from vla_policy_node.cli.compress import compress
from vla_policy_node.cli.replay import record, replay
from vla_policy_node.cli.topics import TopicCommand
from vla_policy_node.cli.version import show_version

app = typer.Typer(
    name='vla',
    no_args_is_help=True,
    rich_markup_mode='markdown',
    pretty_exceptions_enable=False,
)


@app.callback()
def _root(
    version: Annotated[bool, typer.Option(
        '--version', is_eager=True, callback=show_version,
        help='Show the versions of this package, torch and ROS.')] = False,
) -> None:
    """Serve accelerated vision-language-action policies to a robot.

    Try it: `vla bringup --world` in one terminal, and in another
    `vla instruct "pick up the alphabet soup and place it in the basket"`.

    Exit codes of all commands: 0 it is done; 1 a gate, a check or the robot said no; 2 wrong
    usage, or refused with a sentence on standard error; 130 interrupted with Ctrl-C.
    """


for _command in (
    robot.bringup, robot.instruct, robot.demo, record, replay, robot.tasks, learning.demos,
    learning.train, learning.train_blind, learning.evaluate, compress, robot.new_checkpoint,
    robot.check, robot.doctor,
):
    app.command(
        'eval' if _command is learning.evaluate else None,
        cls=TopicCommand if _command in (robot.bringup, replay) else CheckedCommand)(_command)

_bench = typer.Typer(no_args_is_help=True, help='Measurements that take longer than a test.')
app.add_typer(_bench, name='bench')
for _command in (
    benches.node, benches.policy, benches.selection, benches.headline, benches.methods,
    benches.redundancy, benches.faults, benches.soak,
):
    _bench.command(cls=CheckedCommand)(_command)

_contract = typer.Typer(
    no_args_is_help=True, help='The contract of a robot: cameras, state, actions and limits.')
app.add_typer(_contract, name='contract')
for _command in (contract.check, contract.new):
    _contract.command(cls=CheckedCommand)(_command)

_bag = typer.Typer(no_args_is_help=True, help='Recordings.')
app.add_typer(_bag, name='bag')
_bag.command(cls=CheckedCommand)(bag.info)

_dataset = typer.Typer(no_args_is_help=True, help='LeRobot datasets v3: brought in and written.')
app.add_typer(_dataset, name='dataset')
_dataset.command(cls=CheckedCommand)(dataset.info)
_dataset.command('import', cls=CheckedCommand)(dataset.import_)
_dataset.command(cls=CheckedCommand)(dataset.export)
_dataset.command('from-bag', cls=TopicCommand)(dataset.from_bag)
