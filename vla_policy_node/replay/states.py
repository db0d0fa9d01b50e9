"""The states in a bag, as a policy would be told them, without its pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vla_policy_node.control.hold import HoldError
from vla_policy_node.control.transform_tree import TransformError
from vla_policy_node.policy.interface import PolicySpec
from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.replay.robots import topics_of_robot
from vla_policy_node.replay.settings import robot_of
from vla_policy_node.wire.cdr import MessageError
from vla_policy_node.wire.states import decode_state
from vla_policy_node.wire.streams import is_static, source_of
from vla_policy_node.wire.transforms import TransformPoses

MOST_STATES = 200_000  # of one source: more tell nothing else


def states_in(
    bag: Bag, spec: PolicySpec, contract: str = '', namespace: str = ''
) -> dict[str, np.ndarray]:
    """Return the values of each number of the state by name, as its source measured them.

    spec: of the policy. contract: of the robot, '' for what the bag says, or else the default
    one. namespace: of the robot in the bag, '' for the only one. What cannot be read is left out;
    BagError for a bag without a source that the policy is told something of.
    """
    robot, namespace = robot_of(bag, contract, namespace)
    topics = topics_of_robot(bag, robot, {}, wanted=namespace)
    streams = replace(topics.streams, spec=spec, moves=False)
    names = {quantity.name for quantity in spec.state}
    if unknown := names - {value.name for source in robot.state for value in source.values}:
        raise BagError(
            f'The contract of {robot.name} has no {", ".join(sorted(unknown))}, which the policy '
            'is told; name the contract of the robot that it was trained for (--contract).')
    for name in streams.states:
        if missing := topics.missing.get(name):
            raise BagError(f'{missing.problem}; {missing.cure}.')
    found: dict[str, list[np.ndarray]] = {name: [] for name in streams.states}
    poses = {name: TransformPoses(source) for name, source in streams.transforms.items()}
    read = {topic: stream for topic, stream in topics.inputs.items()
            if source_of(stream) in streams.states}
    for topic, _, raw in bag.messages(read):
        name = source_of(read[topic])
        message: bytes | None = raw
        if len(found[name]) >= MOST_STATES:
            continue
        try:
            if name in poses:
                message = poses[name].take(raw, is_static(read[topic]))
            if message is not None:
                found[name].append(decode_state(message, streams.states[name], ''))
        except (HoldError, MessageError, TransformError):
            continue
    values: dict[str, np.ndarray] = {}
    for name, source in streams.states.items():
        rows = np.array(found[name]).reshape(len(found[name]), -1)
        values |= {value.name: rows[:, place] if len(rows) else np.empty(0)
                   for place, value in enumerate(source.values) if value.name in names}
    return values
