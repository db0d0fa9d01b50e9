"""Folders that commands fill: what somebody else put there is never replaced or removed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from foreign_work import plant, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_policy_node.outputs.clean import main as clean
from vla_policy_node.outputs.files import write_text
from vla_policy_node.outputs.folder import OutputError, claim, clear, foreign, seal
from vla_policy_node.outputs.listing import LIST, Listing
from vla_policy_node.outputs.whole import check_place, check_target, whole_folder

ROOT = Path(__file__).resolve().parents[2]
BY = 'vla test'
NAMES = ['a.txt', 'b.json', 'deep/c.bin', 'deep/er/d.txt']


def fill(folder, content='ours', by=BY):
    """What a command does."""
    claim(folder, NAMES, by, anew=True)
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / name, content)
    seal(folder, by)


def fill_whole(folder, content='ours', by=BY):
    with whole_folder(folder, by) as partial:
        for name in NAMES:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_text(content)


@pytest.mark.parametrize('write', [fill, fill_whole])
def test_what_a_command_wrote_is_replaced_and_removed_to_the_last_folder(tmp_path, write):
    out = tmp_path / 'out'
    write(out, 'first')
    assert foreign(out, BY) == []
    write(out, 'second')
    assert {(out / name).read_text() for name in NAMES} == {'second'}
    clear(out, BY)
    assert list(tmp_path.iterdir()) == []


def test_work_of_others_beside_ours_survives_everything(tmp_path):
    out, elsewhere = tmp_path / 'out', tmp_path / 'elsewhere'
    fill(out)
    before = plant(out, elsewhere)
    theirs = {name: what for name, what in before[0].items()
              if name.split('/')[0] not in (LIST, 'a.txt', 'b.json', 'deep')}
    fill(out, 'again')
    clear(out, BY)
    assert snapshot(out) == theirs
    assert snapshot(elsewhere) == before[1]


def test_a_whole_folder_is_not_replaced_if_it_holds_work_of_others(tmp_path):
    out, elsewhere = tmp_path / 'out', tmp_path / 'elsewhere'
    fill_whole(out)
    before = plant(out, elsewhere)
    with pytest.raises(OutputError, match=r'holds other .*\.git, dangling, linked and 3 more'):
        fill_whole(out, 'again')
    assert (snapshot(out), snapshot(elsewhere)) == before


def test_a_name_that_only_looks_like_ours_is_no_mark(tmp_path):
    """Found by users: any folder with a report.json was taken for a report, and src/ was gone."""
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'report.json').write_text('{}')
    before = plant(out, tmp_path / 'elsewhere')[0]
    for forged in (None, '', '{', '[]', '{"made_by": "somebody"}', '[' * 100_000,
                   json.dumps({'made_by': 'vla_policy_node', 'format': 2, 'files': {}})):
        if forged is not None:
            (out / LIST).write_text(forged)
            before[LIST] = ('file', forged.encode())
        with pytest.raises(OutputError, match='holds other files'):
            fill_whole(out)
        clear(out, BY)
        assert snapshot(out) == before
    with pytest.raises(OutputError, match=r"vla_output\.json' is there already"):
        fill(out)


def test_a_file_that_was_changed_since_is_somebody_elses_work(tmp_path):
    for write, folder in ((fill, tmp_path / 'one'), (fill_whole, tmp_path / 'two')):
        write(folder)
        (folder / 'deep' / 'c.bin').write_text('annotated')
        with pytest.raises(OutputError, match=r'deep/c\.bin.*changed|changed.*deep/c\.bin'):
            write(folder, 'again')
        assert (folder / 'a.txt').read_text() == 'ours'
        clear(folder, BY)
        assert snapshot(folder) == {
            'deep': ('folder',), 'deep/c.bin': ('file', b'annotated')}


def test_files_of_other_commands_in_the_same_folder_are_not_ours(tmp_path):
    fill(tmp_path / 'out')
    claim(tmp_path / 'out', ['theirs.json'], 'vla other')
    (tmp_path / 'out' / 'theirs.json').write_text('1')
    seal(tmp_path / 'out', 'vla other')
    with pytest.raises(OutputError, match='was not written by vla other'):
        claim(tmp_path / 'out', ['a.txt'], 'vla other')
    fill(tmp_path / 'out', 'again')
    clear(tmp_path / 'out', BY)
    assert (tmp_path / 'out' / 'theirs.json').read_text() == '1'
    assert not (tmp_path / 'out' / 'a.txt').exists()


@pytest.mark.parametrize('name', ['a.txt', '.a.txt.partial', 'deep', 'deep/er', 'deep/c.bin'])
@pytest.mark.parametrize('kind', ['file', 'link', 'folder link'])
def test_what_is_in_the_way_is_named_and_nothing_is_written(tmp_path, name, kind):
    out, elsewhere = tmp_path / 'out', tmp_path / 'elsewhere'
    elsewhere.mkdir()
    (elsewhere / 'target').write_text('precious')
    (out / name).parent.mkdir(parents=True)
    if kind == 'file':
        (out / name).write_text('precious')
    else:
        (out / name).symlink_to(elsewhere / 'target' if kind == 'link' else elsewhere)
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match='is there already and was not written by'):
        fill(out)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize('name', [
    '../victim', '/tmp/victim', 'deep/../../victim', 'linked/victim', 'linked', '.', '', '..'])
def test_a_forged_list_reaches_nothing_outside_of_its_folder(tmp_path, name):
    """A folder may come from anybody, and so may the list in it."""
    out = tmp_path / 'out'
    out.mkdir()
    (tmp_path / 'victim').write_text('precious')
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere' / 'victim').write_text('precious')
    (out / 'linked').symlink_to(tmp_path / 'elsewhere')
    for kind in ('files', 'folders', 'outputs'):
        document = {'made_by': 'vla_policy_node', 'format': 1, 'files': {}, 'folders': {},
                    'outputs': {}}
        document[kind] = {name: {'by': BY} if kind == 'files' else BY}
        (out / LIST).write_text(json.dumps(document))
        clear(out, BY)
        clean([str(out)])
        assert (tmp_path / 'victim').read_text() == 'precious'
        assert (tmp_path / 'elsewhere' / 'victim').read_text() == 'precious'
        assert (out / 'linked').is_symlink()


def test_an_output_that_belongs_to_a_folder_goes_with_it_and_another_stays(tmp_path):
    out = tmp_path / 'out'
    claim(out, ['plan.json'], BY, ['runs/one'])
    (out / 'runs').mkdir()
    fill_whole(out / 'runs' / 'one')
    fill_whole(out / 'second')  # another run, whose --out lies in the first one's
    assert foreign(out, BY) == ['second']
    clear(out, BY)
    assert [path.name for path in out.iterdir()] == ['second']
    assert (out / 'second' / 'a.txt').read_text() == 'ours'


def test_a_target_that_is_a_link_is_replaced_where_it_leads(tmp_path):
    (tmp_path / 'big_disk').mkdir()
    (tmp_path / 'out').symlink_to(tmp_path / 'big_disk')
    for content in ('one', 'two'):
        fill_whole(tmp_path / 'out', content)
    assert (tmp_path / 'out').is_symlink()
    assert (tmp_path / 'big_disk' / 'a.txt').read_text() == 'two'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['big_disk', 'out']


def test_what_appears_while_a_folder_is_made_stays(tmp_path):
    out = tmp_path / 'out'
    fill_whole(out)
    with pytest.raises(OutputError, match='notes'), whole_folder(out, BY) as partial:
        (partial / 'a.txt').write_text('new')
        (out / 'notes.txt').write_text('mine')
    assert (out / 'notes.txt').read_text() == 'mine'
    assert (out / 'a.txt').read_text() == 'ours'
    assert [path.name for path in tmp_path.iterdir()] == ['out']


_DIES = '''
import os, sys
from pathlib import Path
sys.path.insert(0, {test!r})
left = int(sys.argv[3])
def count(event, arguments):
    """Die at the n-th change of the disk."""
    global left
    changes = event in ('os.rename', 'os.remove', 'os.rmdir', 'os.mkdir') or (
        event == 'open' and isinstance(arguments[1], str) and set(arguments[1]) & set('wax'))
    if changes:
        left -= 1
        if left < 0:
            os._exit(9)
import _outputs_writer as writer
sys.addaudithook(count)
getattr(writer, sys.argv[1])(Path(sys.argv[2]), 'again')
'''


@pytest.mark.slow
@pytest.mark.parametrize('write', [fill, fill_whole])
def test_a_run_that_is_killed_at_any_moment_leaves_a_folder_in_which_the_next_one_works(
        tmp_path, write):
    source = Path(__file__).read_text()
    wanted = source[source.index('NAMES ='):source.index('@pytest')]
    (tmp_path / '_outputs_writer.py').write_text(
        'from vla_policy_node.outputs.files import write_text\n'
        'from vla_policy_node.outputs.folder import claim, seal\n'
        "from vla_policy_node.outputs.whole import whole_folder\nBY = 'vla test'\n" + wanted)
    script = _DIES.format(test=str(tmp_path))
    for moment in range(200):
        place = tmp_path / str(moment)
        place.mkdir()
        write(place / 'out', 'first')
        before = {}
        if write is fill:
            before = plant(place / 'out', place / 'elsewhere')[0]
        done = subprocess.run(
            [sys.executable, '-S', '-c', script, write.__name__, str(place / 'out'), str(moment)],
            env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True,
            check=False, timeout=60)
        assert done.returncode in (0, 9), done.stderr
        write(place / 'out', 'last')
        assert {(place / 'out' / name).read_text() for name in NAMES} == {'last'}
        after = snapshot(place / 'out')
        assert all(after[name] == what for name, what in before.items()
                   if name.split('/')[0] in ('.git', 'src', 'notes.txt', 'linked', 'linked.bin'))
        assert foreign(place / 'out', BY) == sorted({
            name.split('/')[0] for name in before} - {LIST, 'a.txt', 'b.json', 'deep'})
        shutil.rmtree(place)
        if done.returncode == 0:
            break
    assert done.returncode == 0
    assert moment > 8


_names = st.lists(
    st.sampled_from(['a.txt', 'x', 'deep', 'deep/c.bin', 'deep/x', 'x/y', '.a.txt.partial',
                     'b.json', 'deep/er/d.txt', '.out-12345678.partial']), unique=True)
_steps = st.lists(st.sampled_from(['fill', 'clear', 'plant', 'change', 'whole']), max_size=8)


@settings(max_examples=60, deadline=None)
@given(names=_names, steps=_steps)
def test_whatever_the_order_bytes_of_others_never_change(tmp_path_factory, names, steps):
    place = tmp_path_factory.mktemp('law')
    out, theirs = place / 'out', {}
    out.mkdir()
    for number, step in enumerate(steps):
        try:
            if step == 'fill':
                fill(out, f'ours {number}')
            elif step == 'whole':
                fill_whole(out, f'ours {number}')
            elif step == 'clear':
                clear(out, BY)
        except OutputError:
            pass
        if step == 'plant':
            for name in names:
                if not os.path.lexists(out / name) and all(
                        not (out / p).is_file() for p in Path(name).parents):
                    (out / name).parent.mkdir(parents=True, exist_ok=True)
                    theirs[name] = f'theirs {number}'
                    (out / name).write_text(theirs[name])
        if step == 'change' and (out / 'b.json').is_file():
            theirs['b.json'] = f'changed {number}'
            (out / 'b.json').write_text(theirs['b.json'])
        out.mkdir(exist_ok=True)
        assert {name: (out / name).read_text() for name in theirs} == theirs


def test_make_clean_removes_what_is_ours_anywhere_below_and_says_what_stays(tmp_path, capsys):
    out, elsewhere = tmp_path / 'out', tmp_path / 'elsewhere'
    fill(out / 'demo')
    fill_whole(out / 'replay')
    before = plant(out, elsewhere)
    theirs = {name: what for name, what in before[0].items()
              if name.split('/')[0] not in ('demo', 'replay')}
    fill(elsewhere / 'made')  # reached by no link
    (out / 'demo' / 'a.txt').write_text('annotated')
    clean([str(out)])
    assert 'stays' in capsys.readouterr().out
    assert snapshot(out) == theirs | {
        'demo': ('folder',), 'demo/a.txt': ('file', b'annotated')}
    assert (elsewhere / 'made' / 'a.txt').exists()
    fill(tmp_path / 'all_ours' / 'demo')
    clean([str(tmp_path / 'all_ours')])
    assert not (tmp_path / 'all_ours').exists()


def test_make_clean_keeps_an_environment_and_folders_that_it_did_not_make(tmp_path):
    shutil.copy(ROOT / 'Makefile', tmp_path)
    for name in ('.venv', 'build', 'install', 'log', 'src'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'file').write_text('mine')
    command = ['make', '-C', str(tmp_path), 'clean', f'PYTHON={sys.executable}']
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    fill(tmp_path / 'out' / 'demo')
    before = snapshot(tmp_path)
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
    assert snapshot(tmp_path) == {
        name: what for name, what in before.items() if not f'{name}/'.startswith('out/')}
    (tmp_path / '.venv' / '.made_by_setup').touch()
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
    assert not (tmp_path / '.venv').exists()
    assert (tmp_path / 'build' / 'file').exists()


def test_the_list_can_be_read_by_any_python(tmp_path):
    fill(tmp_path / 'out')
    subprocess.run(
        [sys.executable, '-S', '-m', 'vla_policy_node.outputs.clean', str(tmp_path / 'out')],
        env={**os.environ, 'PYTHONPATH': str(ROOT)}, check=True, timeout=60)
    assert not (tmp_path / 'out').exists()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / 'out').write_text('mine')
    with pytest.raises(OutputError, match='is a file'):
        check_target(tmp_path / 'out', BY)
    assert Listing.read(tmp_path).files == {}


@pytest.mark.parametrize('name', ['file/out', 'x' * 250, f'{"y" * 300}/out', 'circle/out'])
def test_a_place_where_no_folder_can_be_made_is_refused_before_the_work(tmp_path, name):
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'circle').symlink_to(tmp_path / 'circle')
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputError, match='cannot be written'):
        check_place(tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before


def test_looking_whether_a_place_can_be_written_leaves_nothing(tmp_path):
    for target in (tmp_path / 'out', tmp_path / 'deep' / 'er' / 'out', tmp_path):
        check_place(target)
    assert list(tmp_path.iterdir()) == []
