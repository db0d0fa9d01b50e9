"""Every command of `vla`, found from the application, with values that no command can use."""

import inspect
import os
from contextlib import suppress
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from vla_policy_node.cli import app

NUMBERS = ('9' * 30, 'nan', '-inf', 'x', '')
NOT_UTF_8 = os.fsdecode(b'\xff')
PLACES = ('file', 'folder', 'file/below', '/proc/nowhere/x', 'x' * 300, NOT_UTF_8, '')
WORDS = ('nowhere', NOT_UTF_8, '\x1b[31m[/]')


def leaves(command, path=()):
    for name, child in getattr(command, 'commands', {}).items():
        yield from leaves(child, (*path, name))
    if not hasattr(command, 'commands'):
        yield path, command


COMMANDS = dict(leaves(typer.main.get_command(app)))
SLOW = {('doctor',)}  # no arguments


class WorkWouldBegin(BaseException):
    """The value was accepted."""


def stop(*_, **__):
    raise WorkWouldBegin


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a file and a folder in it; no command gets as far as working."""
    for name in ('evaluation.evaluate.run_plan', 'bench.methods.run_plan',
                 'bench.methods._measure_costs', 'bench.selection.run_plan',
                 'bench.fault_campaign.run_layer',
                 'system.processes.System.__enter__', 'nodes.recorder_node.run',
                 'nodes.instruct.rclpy.init', 'bench.policy_run._measure',
                 'training.demonstration_set.worker_pool', 'bench.live.node._cameras'):
        monkeypatch.setattr(f'vla_policy_node.{name}', stop)
    (tmp_path / 'file').write_bytes(b'\0\1 no such format')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'notes.txt').write_text('mine')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kind_of(command, param) -> str:
    return str(inspect.signature(
        command.callback, eval_str=True).parameters[param.name].annotation)


def lines(path, command):
    """Yield argument lists, each with one value that cannot be used."""
    given = [p for p in command.params if p.name not in ('help', 'context')]
    for chosen in given:
        kind = kind_of(command, chosen)
        if getattr(chosen, 'is_flag', False):
            continue
        values = (NUMBERS if 'int' in kind or 'float' in kind
                  else PLACES if 'Path' in kind else WORDS)
        for value in values:
            options, words = [], []
            for param in given:
                if param is not chosen and not param.required:
                    continue
                text = value if param is chosen else {'stage': 'lightvla'}.get(param.name, 'fresh')
                if param.param_type_name == 'argument':
                    words.append(text)
                else:
                    options += [param.opts[0], text]
            yield [*path, *options, '--', *words]


def contents(folder: Path) -> dict:
    return {str(path): path.is_file() and path.read_bytes() for path in folder.rglob('*')}


@pytest.mark.parametrize('path', sorted(COMMANDS.keys() - SLOW), ids=' '.join)
def test_a_value_that_cannot_be_used_is_one_sentence_and_leaves_nothing(path, place):
    codes = {('check',): {1, 2}, ('contract', 'new'): {0, 2}}  # a check fails; odd names are names
    for line in lines(path, COMMANDS[path]):
        before = contents(place)
        with suppress(WorkWouldBegin):
            result = CliRunner().invoke(app, line, env={'COLUMNS': '120'})
            told = f'{line}: {result.exit_code} {result.output[-600:]}'
            assert isinstance(result.exception, SystemExit | None), told
            assert 'Traceback' not in result.output, told
            assert 'did not expect' not in result.output, told
            assert result.exit_code in codes.get(path, {2}), told
            if result.exit_code == 2:
                assert result.output.rstrip().endswith(('.', '?', '╯')), told
                assert contents(place) == before, told
