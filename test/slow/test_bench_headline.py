"""`vla bench headline`: test layouts, once a release, training seeds side by side."""

# ruff: noqa: F401, F811 - fixtures are imported by name

import json
import shutil

import pytest
from made_up_episodes import made_up, tiny_checkpoint
from rich.console import Console

from vla_policy_node.bench import headline
from vla_policy_node.bench.headline import parse_rows, report
from vla_policy_node.evaluation import worker
from vla_policy_node.world.layouts import SPLITS

CONSOLE = Console(width=80)


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """Two checkpoints with other weights, and the rows of a table: one trained twice."""
    root = tmp_path_factory.mktemp('headline')
    for name in ('dense', 'one'):
        tiny_checkpoint(root / name)
    shutil.copytree(root / 'one', root / 'two')
    statistics = root / 'two' / 'dataset_statistics.json'
    statistics.write_text(statistics.read_text() + '\n')
    return root


def rows_of(root, *names):
    return parse_rows([f'dense=dense@{root / "dense"}', *(
        f'LightVLA=lightvla@{root / name}' for name in names)])


def run(rows, out):
    return report(rows, 'libero_object', 3, 1, out, CONSOLE)


def test_rows_run_on_test_layouts_alone(checkpoints, made_up, tmp_path):
    document = run(rows_of(checkpoints, 'one'), tmp_path)
    assert len(made_up) == 2 * 30
    assert all(seed >= SPLITS['test'] for _, seed in made_up)
    assert document['split'] == 'test'
    assert document['release'] == headline.version('vla_policy_node')
    assert json.loads((tmp_path / 'headline.json').read_text()) == document
    text = (tmp_path / 'headline.md').read_text()
    assert f'30 test layouts (`{document["layouts_sha256"][:12]}`)' in text
    assert '| LightVLA | 33.3 % (19-51) | -33.3 (' in text
    assert '| pick up the milk and place it in the basket | 2/3 | 1/3 |' in text
    assert '| dense | 10 |' in text  # dropped
    assert document['seeds'] == []


def test_other_layouts_have_another_digest(checkpoints, made_up, tmp_path):
    rows = rows_of(checkpoints)
    few = report(rows, 'libero_object', 2, 1, tmp_path / 'few', CONSOLE)
    more = report(rows, 'libero_object', 3, 1, tmp_path / 'more', CONSOLE)
    again = report(rows, 'libero_object', 3, 1, tmp_path / 'again', CONSOLE)
    assert few['layouts_sha256'] != more['layouts_sha256'] == again['layouts_sha256']


def test_a_row_that_was_trained_twice_has_mean_and_spread(checkpoints, made_up, tmp_path):
    document = run(rows_of(checkpoints, 'one', 'two'), tmp_path)
    (row,) = document['seeds']
    assert row['labels'] == ['LightVLA (1)', 'LightVLA (2)']
    assert (row['mean'], row['lowest'], row['highest']) == pytest.approx((1 / 3,) * 3)
    assert row['difference'] == pytest.approx(-1 / 3)
    assert '| LightVLA, 2 seeds | 33.3 % | 33.3 to 33.3 | -33.3 (' in (
        tmp_path / 'headline.md').read_text()


def test_seeds_of_several_rows_are_compared_one_by_one(checkpoints, made_up, tmp_path):
    rows = parse_rows([
        f'{label}={method}@{checkpoints / name}' for label, method, name in (
            ('dense', 'dense', 'dense'), ('dense', 'dense', 'one'),
            ('longer', 'dense', 'two'),
            ('LightVLA', 'lightvla', 'dense'), ('LightVLA', 'lightvla', 'one'),
            ('LightVLA', 'lightvla', 'two'))])
    document = run(rows, tmp_path)
    dense, lightvla = document['seeds']  # made up: only the label 'dense' alone is better
    assert (dense['row'], dense['labels']) == ('dense', ['dense (1)', 'dense (2)'])
    assert 'difference' not in dense
    assert lightvla['labels'] == [f'LightVLA ({number})' for number in (1, 2, 3)]
    assert lightvla['difference'] == pytest.approx(0)
    assert lightvla['interval_of_tasks'] == [0, 0]
    assert [pair['row'] for pair in lightvla['against']] == ['dense', 'longer']
    assert [pair['second'] for pair in document['paired']] == [
        'dense (2)', 'longer', *lightvla['labels']]
    text = (tmp_path / 'headline.md').read_text()
    assert '| LightVLA, 3 seeds |' in text
    assert '| longer |' in text
    assert '| LightVLA minus longer | +0.0 (+0.0 to +0.0) |' in text


def test_an_interrupted_report_goes_on_where_it_was(
        checkpoints, made_up, tmp_path, monkeypatch):
    whole = run(rows_of(checkpoints, 'one'), tmp_path / 'whole')
    made_up.clear()
    run_episode, left = worker.run_episode, [13]

    def interrupted(*arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return run_episode(*arguments, **options)

    monkeypatch.setattr(worker, 'run_episode', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(rows_of(checkpoints, 'one'), tmp_path / 'again')
    assert not (tmp_path / 'again' / 'headline.json').exists()
    monkeypatch.setattr(worker, 'run_episode', run_episode)
    resumed = run(rows_of(checkpoints, 'one'), tmp_path / 'again')
    assert len(made_up) == 2 * 30 + 1  # six units were kept, the seventh ran again
    for name in ('layouts_sha256', 'totals', 'paired', 'checkpoints'):
        assert resumed[name] == whole[name]

def test_an_unfinished_report_goes_on_with_its_own_checkpoints_alone(
        checkpoints, made_up, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(headline, 'summarise', interrupt)
        run(rows_of(checkpoints, 'one'), tmp_path)
    with pytest.raises(ValueError, match='other other_checkpoints_sha256'):
        run(rows_of(checkpoints, 'two'), tmp_path)


def test_a_release_is_not_reported_with_other_checkpoints(
        checkpoints, made_up, tmp_path, monkeypatch):
    run(rows_of(checkpoints, 'one'), tmp_path)
    run(rows_of(checkpoints, 'one'), tmp_path)  # the same again is the same again
    before = (tmp_path / 'headline.json').read_bytes()
    dense, one = checkpoints / 'dense', checkpoints / 'one'
    for rows, episodes in (
        (rows_of(checkpoints, 'two'), 3),
        (rows_of(checkpoints, 'one', 'two'), 3),
        (rows_of(checkpoints), 3),  # a row that disappears
        (rows_of(checkpoints, 'one'), 2),
        (parse_rows([f'dense=dense@{dense}', f'LightVLA=random_tokens:count=3@{one}']), 3),
    ):
        with pytest.raises(ValueError, match=r'the test results of release .* other checkpoints'):
            report(rows, 'libero_object', episodes, 1, tmp_path, CONSOLE)
    assert (tmp_path / 'headline.json').read_bytes() == before
    monkeypatch.setattr(headline, 'version', lambda name: '99.0')
    assert run(rows_of(checkpoints, 'two'), tmp_path)['release'] == '99.0'


@pytest.mark.parametrize('text', ['', 'dense', 'dense=dense', '=dense@x', 'a@b'])
def test_a_row_that_is_not_written_so_is_one_sentence(text):
    with pytest.raises(ValueError, match=r"^--row takes 'LABEL=METHOD@CHECKPOINT'"):
        parse_rows([text])
