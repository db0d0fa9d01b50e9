"""The contracts that come with the package, and where they are."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from vla_policy_node.common.contract_files import DEFAULT, contracts_folder
from vla_policy_node.contract.load import load_contract, parse_contract
from vla_policy_node.contract.parts import ContractError
from vla_policy_node.contract.robot import RobotContract


def folder() -> Path:
    """Return where the contracts lie. Raises ContractError if they are not installed."""
    found = contracts_folder()
    if found is None:
        raise ContractError(
            'The contracts that come with vla_policy_node are not installed; install the package '
            'anew.')
    return found


def shipped_contracts() -> tuple[str, ...]:
    """Return the names of the contracts that come with the package."""
    return tuple(sorted(path.stem for path in folder().glob('*.yaml')))


def shipped_text(name: str) -> str:
    """Return the file of a shipped contract, comments included. Raises ContractError."""
    _check_shipped(name)
    return (folder() / f'{name}.yaml').read_text(encoding='utf-8')


def find_contract(name: str) -> RobotContract:
    """Return a contract by the name of a shipped one or by its file; '' is the default one.

    What has lines is the text of a contract, as a recording may hold it.
    Raises ContractError.
    """
    if '\n' in name:
        return parse_contract(name)
    if name.endswith(('.yaml', '.yml')):
        return load_contract(name)
    if name:
        _check_shipped(name)
    return _shipped(name or DEFAULT)


def _check_shipped(name: str) -> None:
    if name not in shipped_contracts():
        raise ContractError(
            f"There is no contract '{name[:60]}'; name a .yaml file or one of "
            f'{", ".join(shipped_contracts())}.')


@cache
def _shipped(name: str) -> RobotContract:
    return load_contract(folder() / f'{name}.yaml')
