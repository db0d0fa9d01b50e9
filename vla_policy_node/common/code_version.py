"""Says when and by which code a figure was made: version and, where known, commit."""

from __future__ import annotations

import subprocess
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_LIMIT_S = 5.0


def date_and_code() -> dict[str, str]:
    """Return what a table or a picture made now should say of that."""
    return {'date': f'{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC', 'code': code_version()}


@cache
def code_version() -> str:
    """Return, for example, 'vla_policy_node 0.1.0, commit 1a2b3c4d5e6f, changed since'.

    The commit is that of the repository whose root holds this package; an installed package has
    none, though it may lie within the repository of something else.
    """
    try:
        text = f'vla_policy_node {version("vla_policy_node")}'
    except PackageNotFoundError:
        text = 'vla_policy_node'
    if not (_ROOT / '.git').exists():
        return text
    try:
        done = subprocess.run(
            ['git', '--no-optional-locks', '-C', str(_ROOT), 'describe', '--always',
             '--exclude=*', '--dirty', '--abbrev=12'],
            capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return text
    commit, dirty, _ = done.stdout.strip().partition('-dirty')
    if done.returncode or not commit:
        return text
    return f'{text}, commit {commit}' + (', changed since' if dirty else '')
