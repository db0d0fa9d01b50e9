"""Pages of the Python API: one for each package, made from docstrings when the site is built."""

import ast
from pathlib import Path

from scripts.reference.text import PACKAGE

# Command lines and what only runs from them have a reference of their own.
LEFT_OUT = {'cli', 'commands', 'bench', 'demo', 'checks', 'outputs'}


def pages() -> dict[str, str]:
    """Return each page by its path in the documentation."""
    folders = sorted(path.parent for path in PACKAGE.glob('*/__init__.py')
                     if path.parent.name not in LEFT_OUT)
    return {f'reference/api/{folder.name}.md': _page(folder) for folder in folders}


def _page(folder: Path) -> str:
    lines = [f'# `vla_policy_node.{folder.name}`', '']
    for path in sorted(folder.rglob('*.py')):
        parts = path.relative_to(PACKAGE.parent).with_suffix('').parts
        module = '.'.join(part for part in parts if part != '__init__')
        if path.name == '__init__.py' and not _public(path):
            continue
        lines += [f'::: {module}', '']
    return '\n'.join(lines)


def _public(path: Path) -> bool:
    """Whether a package's own file defines anything, or at least says more than one line."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    return any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in tree.body)
