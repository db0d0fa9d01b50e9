"""`vla bench selection`: one table from several checkpoints, variants trained where missing."""

# ruff: noqa: F401, F811 - fixtures are imported by name

import json
import shutil

import pytest
from made_up_episodes import made_up, tiny_checkpoint
from rich.console import Console

from vla_policy_node.bench import selection
from vla_policy_node.bench.selection import LIGHTVLA, TRAINED, Question, answer
from vla_policy_node.commands.train import stage_config
from vla_policy_node.training.run_record import FORMAT, RECORD

CONSOLE = Console(width=100)


def record(config) -> str:
    """Return as much of the record of a run as says its recipe."""
    return json.dumps({
        'format': FORMAT, 'settings': config.document(),
        'lengths': [{'from_step': 0, 'steps': config.steps}]})


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """A dense checkpoint, and the runs of all that is trained from it."""
    root = tmp_path_factory.mktemp('selection')
    dense = tiny_checkpoint(root / 'dense')
    for folder, changes in TRAINED.values():
        shutil.copytree(dense, root / 'runs' / folder / 'checkpoint')
        (root / 'runs' / folder / RECORD).write_text(
            record(stage_config('lightvla', None, changes)))
    return root


def question(root, tmp_path, **changes) -> Question:
    return Question(**{
        'dense': root / 'dense', 'runs': root / 'runs', 'demonstrations': None, 'out': tmp_path,
        'episodes': 3, 'tasks': (0,), 'workers': 1, **changes})


def test_every_row_runs_on_the_same_layouts(folders, tmp_path, made_up):
    document = answer(question(folders, tmp_path), CONSOLE)
    labels = [total['method'] for total in document['totals']]
    # LightVLA keeps two tokens in the made-up episodes: so do those it is compared with.
    assert labels == [
        'dense', 'LightVLA', '2 random tokens', 'FastV, 2 tokens',
        'LightVLA + 16 random tokens', 'LightVLA - 10% of its tokens',
        '2 random tokens, LightVLA weights', *(label for label in TRAINED if label != LIGHTVLA)]
    assert sorted(made_up) == sorted((label, seed) for label in labels for seed in {
        seed for _, seed in made_up})
    assert len(made_up) == 3 * len(labels)
    assert json.loads((tmp_path / 'selection.json').read_text()) == document
    table = (tmp_path / 'selection.md').read_text()
    assert all(f'| {label} | ' in table for label in labels)
    assert 'on object' in table
    assert document['machine']['code'] in table.splitlines()[0]
    assert '| 800 x 16 | noise_scale=0.0 |' in table
    row = next(line for line in table.splitlines() if line.startswith('| LightVLA | '))
    pair = document['paired'][0]
    low, high = (f'{100 * bound:+.0f}' for bound in pair['interval'])
    assert f'({low} to {high}) | {pair["verdict"]} | {pair["p_holm"]:.2g} | ' in row
    origins = {origin['method']: origin for origin in document['checkpoints']}
    assert [*origins] == labels and origins['dense']['recipe'] is None
    assert len({origin['sha256'] for origin in origins.values()}) == 1  # all copies of one here
    assert {path.name for path in tmp_path.glob('*.png')} == {
        'selection-success.png', 'selection-tokens.png'}


def test_what_is_missing_is_trained_from_the_dense_checkpoint_with_one_budget(
        folders, tmp_path, made_up, monkeypatch):
    runs, trained = tmp_path / 'runs', []

    def run_stage(run, console):
        trained.append(run)
        shutil.copytree(folders / 'dense', run.out / 'checkpoint')
        (run.out / RECORD).write_text(record(run.config))

    monkeypatch.setattr(selection, 'run_stage', run_stage)
    answer(question(folders, tmp_path, runs=runs, demonstrations=tmp_path / 'demos',
                    changes=('steps=450', 'batch=64')), CONSOLE)
    assert [run.out for run in trained] == [runs / folder for folder, _ in TRAINED.values()]
    assert {run.start for run in trained} == {folders / 'dense'}
    assert {(run.config.steps, run.config.batch) for run in trained} == {(450, 64)}
    authors, star, silent, fixed = (run.config.objective for run in trained)
    assert (authors['noise_scale'], authors['noise_decays']) == (1.0, True)
    assert (star['learnt_queries'], silent['noise_scale'], fixed['noise_decays']) == (
        64, 0.0, False)


def test_a_run_with_another_budget_is_refused(folders, tmp_path):
    with pytest.raises(ValueError, match='was trained with steps=800, not 450; take other --runs'):
        answer(question(folders, tmp_path, changes=('steps=450',)), CONSOLE)


def test_without_demonstrations_a_missing_variant_is_one_sentence(folders, tmp_path):
    with pytest.raises(ValueError, match='name the demonstrations to train it on'):
        answer(question(folders, tmp_path, runs=tmp_path / 'none'), CONSOLE)
