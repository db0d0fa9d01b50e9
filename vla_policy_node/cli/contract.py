"""Declares `vla contract`: create a robot contract, check one."""

from pathlib import Path
from typing import Annotated

import typer

from vla_policy_node.cli.refusal import refusal


def check(
    contract: Annotated[str, typer.Argument(
        help='A .yaml file, or the name of a contract that comes with the package.')],
) -> None:
    """Check a robot contract and say what a policy and the node would take from it.

    The first thing that is wrong is named with its place in the file and what to do. Nothing has
    to run for it: neither ROS nor a policy. Exit code 0: it is whole, 2: it is not.

    * `vla contract check my_robot.yaml`

    * `vla contract check two_arms`: one that comes with the package
    """
    from vla_policy_node.common.terminal import fitted, make_console
    from vla_policy_node.contract import ContractError, find_contract
    from vla_policy_node.contract.describe import describe
    from vla_policy_node.loop.contract_fields import check_moved

    try:
        robot = find_contract(contract)
    except ContractError as error:
        raise refusal(error) from None
    for table in describe(robot):
        make_console().print(fitted(table, 1 if table.columns[0].header == '#' else 0))
    try:
        check_moved(robot)
        typer.echo('The contract is whole, and the policy node moves this robot.')
    except ContractError as error:
        typer.echo(f'The contract is whole, but the policy node will not move this robot: {error}')


def new(
    file: Annotated[Path, typer.Argument(help='The .yaml file to write; must not exist.')],
    like: Annotated[str, typer.Option(
        help='The contract to begin with: end_effector, franka_libero, joint_arm or two_arms.',
    )] = 'end_effector',
) -> None:
    """Write a commented contract to begin with; change it to what your robot has.

    `vla contract new my_robot.yaml --like joint_arm`
    """
    from vla_policy_node.contract import ContractError
    from vla_policy_node.contract.shipped import shipped_text

    try:
        text = shipped_text(like)
        with file.open('x', encoding='utf-8') as target:
            target.write(text)
    except ContractError as error:
        raise refusal(error) from None
    except FileExistsError:
        raise refusal(f"'{file}' exists; choose another name.") from None
    except OSError as error:
        raise refusal(f"'{file}' cannot be written: {error.strerror}.") from None
    typer.echo(f'Wrote {file}; when it says what your robot has: vla contract check {file}')
