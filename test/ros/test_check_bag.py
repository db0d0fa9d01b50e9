"""`vla check --bag` and `--dataset`: the user's data beside what training saw."""

from pathlib import Path

import pytest
from replay_bag import make_bag
from typer.testing import CliRunner

from vla_policy_node import cli
from vla_policy_node.commands import check as command
from vla_policy_node.policy.interface import PolicySpec, Quantity
from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.replay.states import states_in
from vla_policy_node.runtime.small import create_small_checkpoint

DATA = Path(__file__).parents[1] / 'data'


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    return make_bag(tmp_path_factory.mktemp('bags') / 'monday', seconds=0.5)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp('checkpoint')
    create_small_checkpoint(folder, 1)
    return folder


def test_the_states_of_a_bag_are_those_that_a_policy_is_told(bag):
    spec = PolicySpec(state=PolicySpec().state[1:4])
    with Bag(bag) as opened:
        values = states_in(opened, spec)
    assert set(values) == {'y', 'z', 'rx'} and len(values['z']) == 10
    assert values['z'] == pytest.approx(0.5)


def test_a_bag_without_what_the_policy_is_told_is_refused(tmp_path, bag):
    with Bag(bag) as opened, pytest.raises(BagError, match='has no elbow'):
        states_in(opened, PolicySpec(state=(Quantity('elbow'),)))
    poor = make_bag(tmp_path / 'bag', seconds=0.2, omit=('/gripper_state',))
    with Bag(poor) as opened, pytest.raises(BagError, match='gripper_state'):
        states_in(opened, PolicySpec())


def test_states_that_training_never_saw_fail(checkpoint, bag, monkeypatch):
    monkeypatch.setattr(command, '_self_checks', lambda *arguments: [])
    result = CliRunner().invoke(cli.app, [
        'check', str(checkpoint), '--bag', str(bag),
        '--dataset', str(DATA / 'lerobot_v3' / 'dataset_image')])
    assert result.exit_code in (0, 1), result.output
    assert 'states of monday' in result.output
    assert 'FAIL' in result.output and '6 numbers in action' in ' '.join(result.output.split())
