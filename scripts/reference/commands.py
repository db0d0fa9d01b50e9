"""Pages of the command line and of the launch arguments."""

import inspect
from collections.abc import Iterator

import typer

from scripts.reference.text import code, table
from vla_policy_node.cli import app
from vla_policy_node.system.arguments import ARGUMENTS

HEAD = '''# Commands

Everything that `vla` can do. `vla COMMAND --help` says the same in a terminal.
'''
LAUNCH_HEAD = '''# Launch arguments

Of `ros2 launch vla_policy_node bringup.launch.py name:=value`, and of `vla bringup` as `--name
value`. Everything else is in the [parameter file](parameters.md).
'''


def page() -> str:
    """Return the page of all commands."""
    return HEAD + ''.join(_section(name, command) for name, command in commands())


def launch_page() -> str:
    """Return the page of what is chosen per deployment."""
    return LAUNCH_HEAD + '\n' + table(
        ('argument', 'default', 'meaning'),
        ((code(argument.name),
          code(str(argument.default).lower() if argument.default != '' else ''),
          argument.description + (f' One of {", ".join(map(code, argument.choices))}.'
                                  if argument.choices else ''))
         for argument in ARGUMENTS)) + '\n'


def commands() -> Iterator[tuple[str, object]]:
    """Yield every command with its full name."""
    yield from _below('vla', typer.main.get_command(app))


def _below(name: str, command: object) -> Iterator[tuple[str, object]]:
    children = getattr(command, 'commands', None)
    if children is None:
        yield name, command
        return
    for child in children.values():
        yield from _below(f'{name} {child.name}', child)


def _section(name: str, command: object) -> str:
    rows = [(f'`{"`, `".join(_names(option))}`', code(_default(option)),
             (getattr(option, 'help', '') or '')) for option in command.params]
    text = f'\n## {name}\n\n{inspect.cleandoc(command.help or "")}\n'
    return text + ('\n' + table(('option', 'default', 'meaning'), rows) + '\n' if rows else '')


def _names(option: object) -> list[str]:
    if option.param_type_name == 'argument':
        return [option.name.upper()]
    return [*option.opts, *option.secondary_opts]


def _default(option: object) -> str:
    value = option.default
    if value is None or value in ('', ()) or callable(value):
        return ''
    return str(value).lower() if isinstance(value, bool) else str(value)
