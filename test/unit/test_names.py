"""A name means one thing in the whole package."""

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / 'vla_policy_node'


def test_no_two_classes_share_a_name():
    """But for private ones, which nobody meets outside of their file."""
    files = defaultdict(list)
    for path in sorted(PACKAGE.rglob('*.py')):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
                files[node.name].append(str(path.relative_to(PACKAGE)))
    twice = {name: found for name, found in files.items() if len(found) > 1}
    assert files and not twice
