"""Turns an error into a one-sentence refusal with an exit code, for every command."""

import typer

from vla_policy_node.cli import interrupts
from vla_policy_node.common.printable import printable

REFUSED = 2  # exit code


def refusal(reason: object) -> typer.Exit:
    """Say the one sentence on standard error; raise what is returned."""
    if interrupts.came():  # a library made an error of it
        interrupts.say()
        return typer.Exit(interrupts.INTERRUPTED)
    typer.secho(printable(f'{reason}'), fg='red', err=True)
    return typer.Exit(REFUSED)
