"""Page of all parameters: of every dataclass of fields made with `parameter` in nodes/."""

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass

from scripts.reference.text import code, table
from vla_policy_node import nodes

HEAD = '''# Parameters

Every parameter of every node, read from where the nodes declare them. Give them in a parameter
file (`config/bringup.yaml` is the commented default) or with `--ros-args -p name:=value`. A value
that cannot be used fails `configure` with a sentence. *Tunable* parameters may be set while the
node is configured; the others need `cleanup` first.
'''


def parameter_classes() -> dict[str, type]:
    """Return the parameters of each node: the node's name -> dataclass."""
    found = {}
    for module in pkgutil.iter_modules(nodes.__path__):
        here = vars(importlib.import_module(f'{nodes.__name__}.{module.name}'))
        for name, value in here.items():
            if (is_dataclass(value) and isinstance(value, type) and name.endswith('Parameters')
                    and any('spec' in field.metadata for field in fields(value))):
                found[name.removesuffix('Parameters').lower()] = value
    return dict(sorted(found.items(), key=lambda item: (item[0] != 'policy', item[0])))


def page() -> str:
    """Return the page."""
    return HEAD + ''.join(
        f'\n## Node `{node}`\n\n' + table(
            ('parameter', 'default', 'unit', 'range', 'tunable', 'meaning'), _rows(cls)) + '\n'
        for node, cls in parameter_classes().items())


def _rows(cls: type) -> Iterator[tuple[str, ...]]:
    for field in fields(cls):
        if 'spec' not in field.metadata:
            continue
        spec = field.metadata['spec']
        bounds = ''
        if spec.choices:
            bounds = ', '.join(map(code, spec.choices))
        elif spec.low is not None or spec.high is not None:
            bounds = f'{_end(spec.low)} to {_end(spec.high)}'
        yield (code(field.name), code(_default(field)), spec.unit, bounds,
               'yes' if spec.tunable else '', spec.description)


def _end(bound: float | None) -> str:
    return '∞' if bound is None else f'{bound:g}'


def _default(field: Field) -> str:
    value = field.default if field.default is not MISSING else field.default_factory()
    if isinstance(value, (list, tuple)):
        return str(list(value))
    return str(value).lower() if isinstance(value, bool) else repr(value)
