"""`vla bag info`: what a recording holds and what a replay would take from it, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vla_policy_node.common.printable import printable
from vla_policy_node.common.terminal import fitted
from vla_policy_node.contract import RobotContract
from vla_policy_node.contract.fit import check_fits, kinds_of_policies
from vla_policy_node.contract.joints import is_moved_by_joints
from vla_policy_node.policy.interface import PolicySpec
from vla_policy_node.replay.bag import Bag
from vla_policy_node.replay.inspection import Inspection, inspect
from vla_policy_node.replay.settings import robot_of


def bag_info(
    path: Path, contract: str, namespace: str, checkpoint: str, console: Console
) -> bool:
    """Print the tables; return whether `vla replay` can take the bag as it is.

    namespace: of the robot in the bag, '' for the only one. checkpoint: of the policy to replay;
    '' for any policy, which may need all inputs. console: one that takes text as it is.
    Raises ValueError with one sentence for a bag that cannot be read, no contract, or a
    checkpoint that is none or that is not for such a robot.
    """
    with Bag(path) as bag:
        robot, namespace = robot_of(bag, contract, namespace)
        policies = ({checkpoint: _spec(checkpoint, robot)} if checkpoint
                    else kinds_of_policies(robot))
        found = inspect(bag, robot, namespace)
    console.print(fitted(_topics(found, path)))
    console.print(fitted(_inputs(found, robot.name)))
    for remark in found.remarks:
        console.print(printable(remark), soft_wrap=True)
    if is_moved_by_joints(robot):
        console.print(f'{robot.name} moves joints; only one end effector can be replayed.')
        return False
    lacking = {name: found.lacks(robot, spec) for name, spec in policies.items()}
    console.print(fitted(_policies(lacking)))
    if checkpoint:
        return not lacking[checkpoint]
    console.print('All inputs are there.' if found.ready else 'Not all inputs are there.')
    return found.ready


def _spec(checkpoint: str, robot: RobotContract) -> PolicySpec:
    from vla_policy_node.policy import read_spec  # torch, which nothing else here needs

    spec = read_spec(checkpoint)
    check_fits(spec, robot)
    return spec


def _topics(found: Inspection, path: Path) -> Table:
    table = Table(title=f'{printable(str(path))}: {found.duration_s:.1f} s')
    for name in ('topic', 'type', 'messages', 'Hz', 'longest gap, s', 'first message'):
        table.add_column(name, justify='right' if name[0] in 'mHl' else 'left')
    for topic in found.topics:
        unstamped = '; stamps are zero' if topic.is_unstamped else ''
        table.add_row(printable(topic.name), printable(topic.kind), str(topic.count),
                      _number(topic.rate_hz, 1), _number(topic.gap_s, 2),
                      printable(topic.contents + unstamped))
    return table


def _inputs(found: Inspection, robot: str) -> Table:
    """Return what feeds each input, and how far it is from the pictures of the first camera."""
    table = Table(title=f'Inputs of {printable(robot)}')
    for name in ('input', 'topic', 'apart p50, ms', 'p95, ms', 'why not'):
        table.add_column(name, justify='right' if 'ms' in name else 'left')
    for one in found.inputs:
        median, most = one.apart_ms or (None, None)
        table.add_row(printable(one.name), printable(one.topic) or '-', _number(median, 1),
                      _number(most, 1), printable(one.problem))
    return table


def _policies(lacking: Mapping[str, Sequence[str]]) -> Table:
    """Return which policies the bag can be replayed with, and what it lacks for the others."""
    table = Table(title='Policies')
    for name in ('policy', 'replay', 'what it lacks'):
        table.add_column(name)
    for name, streams in lacking.items():
        table.add_row(printable(name), 'no' if streams else 'yes', printable(', '.join(streams)))
    return table


def _number(value: float | None, digits: int) -> str:
    return '' if value is None else f'{value:.{digits}f}'
