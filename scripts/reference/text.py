"""Markdown that more than one page needs."""

from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / 'vla_policy_node'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; line breaks and bars in cells are made harmless."""
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(map(_cell, line)) + ' |' for line in lines)


def code(value: object) -> str:
    """Return a value as inline code, '' for nothing."""
    return f'`{value}`' if str(value) else ''


def _cell(text: str) -> str:
    return ' '.join(text.replace('|', '\\|').split())
