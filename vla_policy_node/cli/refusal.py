"""Turns an error into a one-sentence refusal with an exit code, for every command."""

import typer

REFUSED = 2  # exit code


def refusal(reason: object) -> typer.Exit:
    """Say the one sentence on standard error; raise what is returned."""
    typer.secho(str(reason), fg='red', err=True)
    return typer.Exit(REFUSED)
