"""Asks at the terminal whether a bag may choose the checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer


def agrees(wishes: Sequence[object]) -> bool:
    """Show what bags want and ask; without a terminal nobody agrees."""
    if not (wishes and sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    for wish in wishes:
        typer.secho(str(wish), fg='yellow', err=True)
    return typer.confirm('Follow what the bag says?', err=True)
