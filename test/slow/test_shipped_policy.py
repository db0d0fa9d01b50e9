"""The policy that comes with the package does what its words say, on layouts it has never seen."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from vla_policy_node.checkpoints.fingerprint import fingerprint
from vla_policy_node.evaluation.evaluate import evaluate, make_plan
from vla_policy_node.families import read_model_config
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.system.files import default_checkpoint

CHECKPOINTS = Path(__file__).parents[2] / 'checkpoints'
LARGEST_BYTES = 40_000_000
SYNC = {'execution_mode': 'sync'}
HORIZON = 150  # steps; it takes about 100, and what fails takes all of them


def test_it_is_the_default_and_says_how_it_was_trained():
    assert default_checkpoint() == CHECKPOINTS / 'libero_object'
    described = LocalPolicy.load(default_checkpoint(), methods=('lightvla',)).description
    assert described.trained
    assert described.method_settings['lightvla']['multiplicity_bias'] is True
    assert described.statistics_key == 'libero_object_shuffled'


@pytest.mark.parametrize('folder', sorted(CHECKPOINTS.iterdir()), ids=lambda folder: folder.name)
def test_it_is_small_and_whole(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) < LARGEST_BYTES
    assert read_model_config(folder).trained


@pytest.mark.parametrize(('suite', 'episodes'), [('libero_object', 200), ('libero_spatial', 50)])
def test_its_evaluation_is_of_these_very_weights(suite, episodes):
    document = json.loads((CHECKPOINTS / suite / 'evaluation.json').read_text())
    assert document['checkpoint']['sha256'] == fingerprint(CHECKPOINTS / suite)
    assert document['suite'] == suite
    assert (document['layout'], document['episodes']) == ('shuffled', episodes)
    assert {row['method'] for row in document['rows']} == {
        'lightvla', f'dense@checkpoints/{suite}_dense'}


@pytest.mark.parametrize(('name', 'method', 'tasks'), [
    ('libero_object', 'lightvla', (2, 3)), ('libero_object_cogact', 'dense', (0, 2))])
def test_it_succeeds_where_it_can_see_and_not_where_it_cannot(name, method, tasks):
    """Held-out episodes in which it succeeded when it was shipped; two of the four would do."""
    options = {'arguments': {'checkpoint': str(CHECKPOINTS / name)}, 'task_ids': tasks,
               'episodes': 2, 'horizon': HORIZON, 'changes': SYNC}
    seeing = evaluate(make_plan([method], **options), 2, Console())
    assert seeing['success_rate'] >= 0.5
    gray = evaluate(make_plan([method], control='gray', **options), 2, Console())
    assert gray['success_rate'] <= 0.25
