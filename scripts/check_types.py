"""Check types, and let the errors of each folder only become fewer.

    python scripts/check_types.py            # `make types`: fails where there are more
    python scripts/check_types.py --lower    # write down what is left, after errors were mended
    python scripts/check_types.py --moved    # the same after code moved, if the sum has not grown
    python scripts/check_types.py --clean    # looks only at the folders that may have none

The numbers are those of the versions of Python and packages that `types` in CI has; what is clean
must be so with all.

`type_errors.json` beside this file holds the number of errors that each folder of the package may
have. A folder that is not in it may have none.
"""

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = 'vla_policy_node'
LIMITS = Path(__file__).with_name('type_errors.json')
_ERROR = re.compile(rf'^{PACKAGE}/(?:(\w+)/)?.*: error: ')


def count_errors(report: str) -> Counter:
    """Return the number of errors in each folder, '.' for the package's own files."""
    found = (match for line in report.splitlines() if (match := _ERROR.match(line)))
    return Counter(match[1] or '.' for match in found)


def compare(found: Mapping[str, int], allowed: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Return a sentence for each folder that has more errors than it may, and that has fewer."""
    more, fewer = [], []
    for folder in sorted({*found, *allowed}):
        count, limit = found.get(folder, 0), allowed.get(folder, 0)
        sentence = f'{folder}: {count} type errors, {limit} allowed'
        if count > limit:
            more.append(sentence)
        elif count < limit:
            fewer.append(sentence)
    return more, fewer


def lowered(found: Mapping[str, int], allowed: Mapping[str, int]) -> dict[str, int]:
    """Return the smaller limit of each folder, without folders that may have no error."""
    return {folder: count for folder, limit in sorted(allowed.items())
            if (count := min(limit, found.get(folder, 0)))}


def moved(found: Mapping[str, int], allowed: Mapping[str, int]) -> dict[str, int] | None:
    """Return the limits after code moved between folders; None if there are more errors in all."""
    if sum(found.values()) > sum(allowed.values()):
        return None
    return dict(sorted(found.items()))


def main() -> int:
    """Run mypy and compare. The exit code is 1 if a folder has more errors than it may."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--lower', action='store_true', help='write down the smaller numbers')
    parser.add_argument('--moved', action='store_true', help='write down where errors went')
    parser.add_argument('--clean', action='store_true', help='look only at clean folders')
    arguments = parser.parse_args()
    done = subprocess.run(
        [sys.executable, '-m', 'mypy'], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode and 'Found ' not in done.stdout:  # it did not run, or not to its end
        sys.exit(done.stdout + done.stderr)
    found, allowed = count_errors(done.stdout), json.loads(LIMITS.read_text())
    if arguments.moved and (limits := moved(found, allowed)) is not None:
        LIMITS.write_text(json.dumps(limits, indent=2) + '\n')
        allowed = limits
    if arguments.clean:
        found, allowed = Counter({k: n for k, n in found.items() if k not in allowed}), {}
    more, fewer = compare(found, allowed)
    if more:
        print(done.stdout, *more, sep='\n')
        return 1
    print(f'Types: {sum(found.values())} errors, no folder has more than it may.')
    if arguments.lower:
        LIMITS.write_text(json.dumps(lowered(found, allowed), indent=2) + '\n')
    elif fewer:
        print('Fewer than allowed; write it down with `python scripts/check_types.py --lower`:')
        print(*fewer, sep='\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
