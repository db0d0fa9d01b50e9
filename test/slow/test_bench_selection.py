"""`vla bench selection`: one table from several checkpoints, variants trained where missing."""

# ruff: noqa: F401, F811 - fixtures are imported by name

import json
import shutil

import pytest
from made_up_episodes import made_up, tiny_checkpoint
from rich.console import Console

from vla_policy_node.bench import selection
from vla_policy_node.bench.selection import VARIANTS, Question, answer

CONSOLE = Console(width=100)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """A dense checkpoint, a fine-tuned one, and the runs of all variants but the last."""
    root = tmp_path_factory.mktemp('selection')
    dense = tiny_checkpoint(root / 'dense')
    for name in ('lightvla', *(f'runs/{folder}/checkpoint' for folder, _ in VARIANTS.values())):
        shutil.copytree(dense, root / name)
    return root


def question(root, tmp_path, **changes) -> Question:
    return Question(**{
        'dense': root / 'dense', 'lightvla': root / 'lightvla', 'runs': root / 'runs',
        'demonstrations': None, 'out': tmp_path, 'episodes': 3, 'tasks': (0,), 'workers': 1,
        **changes})


def test_every_row_runs_on_the_same_layouts(folders, tmp_path, made_up):
    document = answer(question(folders, tmp_path), CONSOLE)
    labels = [total['method'] for total in document['totals']]
    # LightVLA keeps two tokens in the made-up episodes: so do those it is compared with.
    assert labels == [
        'dense', 'LightVLA', '2 random tokens', 'FastV, 2 tokens',
        'LightVLA + 16 random tokens', 'LightVLA - 10% of its tokens',
        '2 random tokens, LightVLA weights', *VARIANTS]
    assert sorted(made_up) == sorted((label, seed) for label in labels for seed in {
        seed for _, seed in made_up})
    assert len(made_up) == 3 * len(labels)
    assert json.loads((tmp_path / 'selection.json').read_text()) == document
    table = (tmp_path / 'selection.md').read_text()
    assert all(f'| {label} | ' in table for label in labels)
    assert 'on object' in table
    assert {path.name for path in tmp_path.glob('*.png')} == {
        'selection-success.png', 'selection-tokens.png'}


def test_a_variant_that_is_missing_is_trained_from_the_dense_checkpoint(
        folders, tmp_path, made_up, monkeypatch):
    runs, trained = tmp_path / 'runs', []

    def run_stage(run, console):
        trained.append(run)
        shutil.copytree(folders / 'dense', run.out / 'checkpoint')
        return 0

    monkeypatch.setattr(selection, 'run_stage', run_stage)
    answer(question(folders, tmp_path, runs=runs, demonstrations=tmp_path / 'demos'), CONSOLE)
    assert [run.out for run in trained] == [runs / folder for folder, _ in VARIANTS.values()]
    assert {run.start for run in trained} == {folders / 'dense'}
    star, silent, fixed = (run.config for run in trained)
    assert (star.objective['learnt_queries'], silent.objective['noise_scale'],
            fixed.objective['noise_decays']) == (64, 0.0, False)


def test_without_demonstrations_a_missing_variant_is_one_sentence(folders, tmp_path):
    with pytest.raises(ValueError, match='name the demonstrations to train it on'):
        answer(question(folders, tmp_path, runs=tmp_path / 'none'), CONSOLE)
