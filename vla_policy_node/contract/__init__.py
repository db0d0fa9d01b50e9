"""The robot as data: its cameras, its state and what moves it, read from one YAML file.

Needs neither torch nor ROS. docs/contracts.md is the tutorial.
"""

from vla_policy_node.contract.load import load_contract, parse_contract, to_plain, to_yaml
from vla_policy_node.contract.parts import ContractError
from vla_policy_node.contract.robot import RobotContract
from vla_policy_node.contract.shipped import find_contract, shipped_contracts

__all__ = [
    'ContractError', 'RobotContract', 'find_contract', 'load_contract', 'parse_contract',
    'shipped_contracts', 'to_plain', 'to_yaml',
]
