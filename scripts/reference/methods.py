"""Page of all acceleration methods: names, settings and what their modules say."""

import inspect

from scripts.reference.text import code, table
from vla_policy_node import acceleration

HEAD = '''# Acceleration methods

Every method by the name that `--method`, the parameter `methods` and `vla bench methods` take,
with its settings (`name:setting=value`) and their defaults. What each one gains and costs:
[table of all methods](../methods.md).
'''


def page() -> str:
    """Return the page."""
    return HEAD + ''.join(map(_section, acceleration.available()))


def _section(name: str) -> str:
    method = type(acceleration.create(name))
    settings = acceleration.settings(name)
    parts = [f'\n## `{name}`\n', _declared(method), _indented(inspect.getmodule(method).__doc__)]
    if settings:
        parts.append(table(('setting', 'default'), (
            (code(key), code(_value(value))) for key, value in settings.items())))
    parts.append(_indented(method.__doc__))
    return '\n\n'.join(parts) + '\n'


def _declared(method: type[acceleration.Method]) -> str:
    needs, does = (', '.join(f'`{name}`' for name in sorted(entry.name for entry in entries))
                   or 'nothing' for entries in (method.needs, method.does))
    modes = acceleration.execution_modes([method.name])
    return f'Needs: {needs}. Does: {does}.' + (
        f' Only in execution mode {" or ".join(map(code, modes))}.' if method.assumes else '')


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value) if value != '' else "''"


def _indented(text: str | None) -> str:
    """Return a docstring as it stands: its line breaks and its formulas count."""
    return f'```text\n{inspect.cleandoc(text or "")}\n```'
