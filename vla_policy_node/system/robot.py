"""Which robot is meant: the contract that is named, or the one that a recording brings along."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_policy_node.contract import RobotContract, find_contract, load_contract
from vla_policy_node.contract.fit import differences
from vla_policy_node.loop.contract_fields import missing_fields, reference_name, values_of
from vla_policy_node.system.recorded import robot_file

_LONGEST = 256  # characters of a name in a sentence


def read_robot(bag: Path) -> RobotContract | None:
    """Return the contract that a recorder put beside a bag. Raises ContractError."""
    file = robot_file(bag)
    return load_contract(file) if file.exists() else None


def contract_to_follow(
    chosen: str, recorded: RobotContract | None, source: str, named: object
) -> tuple[str, str]:
    """Return the contract for a bag, as a parameter, and what to remark about it, '' for nothing.

    chosen: what the user named, '' for nothing. recorded: what the bag holds, and source the
    parameter that means it: a file or a text. named: what the parameters in the bag call it.
    Raises ValueError if the bag means a robot that nobody knows.
    """
    if recorded is None:
        then, now = (str(name or 'end_effector')[:_LONGEST] for name in (named, chosen))
        if named is None or then == now:
            return chosen, ''
        sentence = f"The bag was recorded with the contract '{then}', not with '{now}'"
        if not chosen:  # the numbers of another robot would be taken for those of this one
            raise ValueError(f'{sentence}, and does not hold it; name it with contract.')
        return chosen, f'{sentence}.'
    apart = differences(recorded, find_contract(chosen))
    if not apart:
        return chosen, ''
    if not chosen:
        return source, ''
    return chosen, (
        f"The bag was recorded with another contract than '{chosen[:_LONGEST]}', which differs in "
        f'{" and ".join(apart)}.')


def with_contract(
    policy: Mapping[str, Any], contract: str, is_own_file: bool
) -> dict[str, Any]:
    """Return the parameters of the policy with those that a contract decides; '' changes nothing.

    is_own_file: they are from a file of the user's own, which is left as it is: where it
    contradicts the contract, the node says so. Raises ContractError.
    """
    if not contract:
        return dict(policy)
    robot, usual = find_contract(contract), find_contract('')
    values = values_of(robot)
    replaced = set() if is_own_file else {
        *values_of(usual), *values, *missing_fields(robot), reference_name(usual.camera_names[0])}
    kept = {name: value for name, value in policy.items() if name not in replaced}
    return {**values, **kept, 'contract': contract}

