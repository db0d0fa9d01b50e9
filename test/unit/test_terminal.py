"""What commands print: whole lines in a pipe, names in a narrow terminal, text as it is."""

from io import StringIO

import pytest
from rich.console import Console
from rich.table import Table

from vla_policy_node.common.printable import printable
from vla_policy_node.common.terminal import fitted, make_console


def rendered(table, width):
    stream = StringIO()
    Console(file=stream, width=width, markup=False, highlight=False).print(table)
    return stream.getvalue()


@pytest.mark.parametrize('width', [60, 80, 120])
@pytest.mark.parametrize('columns', [2, 8, 12])
def test_the_names_of_a_table_are_whole_however_narrow_the_terminal(width, columns):
    names = ['dense', 'efficientvla_tokens', 'lightvla:multiplicity_bias=true+adp']
    table = Table('method', *(f'number {i}' for i in range(columns)))
    for name in names:
        table.add_row(name, *(f'{i} +12 -7, p = 0.36' for i in range(columns)))
    text = rendered(fitted(table), width)
    assert all(len(line) <= width for line in text.splitlines())
    cells = [line.split('┃' if '┃' in line else '│')[1].strip()
             for line in text.splitlines() if line[0] in '┃│']
    assert all(name in ''.join(cells) for name in names)
    assert '…' not in text


def test_text_of_other_people_is_no_markup():
    stream = StringIO()
    console = make_console()
    console.file = stream
    table = Table('[bold]topic', title='[/]')
    table.add_row('/a[/]')
    console.print(table)
    console.print('[red]a[/][/]')
    assert {'[bold]topic', '[/]', '/a[/]', '[red]a[/][/]'} <= {
        part.strip(' ┃│') for part in stream.getvalue().splitlines()}
    assert printable('a\x1b[2Jb\n\udcff') == 'a?[2Jb\n?'


def test_lines_in_a_pipe_are_whole(monkeypatch):
    monkeypatch.delenv('COLUMNS', raising=False)
    console = make_console()
    console.file = StringIO()
    console.print('word ' * 400)
    assert console.file.getvalue().count('\n') == 1
