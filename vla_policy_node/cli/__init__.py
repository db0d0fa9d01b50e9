"""The command line `vla`. Each command imports what is heavy only when it runs."""

import typer

from vla_policy_node.cli import bag, contract, learning, robot
from vla_policy_node.cli import bench as benches
from vla_policy_node.cli.compress import compress
from vla_policy_node.cli.replay import record, replay
from vla_policy_node.cli.topics import TopicCommand

app = typer.Typer(
    name='vla',
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode='markdown',
    pretty_exceptions_enable=False,
    help='Serve accelerated vision-language-action policies to a robot.\n\n'
         'Try it: `vla bringup --world` in one terminal, and in another '
         '`vla instruct "pick up the alphabet soup and place it in the basket"`.',
)
for _command in (
    robot.bringup, robot.instruct, robot.demo, record, replay, robot.tasks, learning.demos,
    learning.train, learning.train_blind, learning.evaluate, compress, robot.new_checkpoint,
    robot.check, robot.doctor,
):
    app.command(
        'eval' if _command is learning.evaluate else None,
        cls=TopicCommand if _command in (robot.bringup, replay) else None)(_command)

_bench = typer.Typer(no_args_is_help=True, help='Measurements that take longer than a test.')
app.add_typer(_bench, name='bench')
for _command in (
    benches.node, benches.policy, benches.selection, benches.headline, benches.methods,
    benches.faults, benches.soak,
):
    _bench.command()(_command)

_contract = typer.Typer(
    no_args_is_help=True, help='The contract of a robot: cameras, state, actions and limits.')
app.add_typer(_contract, name='contract')
for _command in (contract.check, contract.new):
    _contract.command()(_command)

_bag = typer.Typer(no_args_is_help=True, help='Recordings.')
app.add_typer(_bag, name='bag')
_bag.command()(bag.info)


def main() -> None:
    """Run the command line."""
    app()
