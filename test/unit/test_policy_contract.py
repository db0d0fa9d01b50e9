"""What every policy owes, in this process or not: whoever asks cannot tell them apart."""

import json

import numpy as np
import pytest
from policies import INSTRUCTION, KINDS, look

from vla_policy_node.evaluation.lock_step import LockStepControl
from vla_policy_node.loop.parameters import PolicyParameters
from vla_policy_node.policy.interface import (
    EXECUTION_MODES,
    NORMALISED_ACTIONS,
    TOKEN_SELECTIONS,
    Execution,
    InferenceRequest,
    Policy,
    PolicyDescription,
)
from vla_policy_node.policy.recorded import RecordedPolicy
from vla_policy_node.policy.warm_up import warm_up
from vla_policy_node.runtime.small import create_small_checkpoint


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    return create_small_checkpoint(tmp_path_factory.mktemp('small'))


@pytest.fixture(scope='module', params=KINDS)
def policy(request, small):
    made = KINDS[request.param](small)
    yield made
    made.close()


def test_it_is_a_policy(policy):
    assert isinstance(policy, Policy)


def test_its_description_is_the_same_behind_a_wire(policy):
    told = json.loads(json.dumps(policy.description.to_dict()))
    assert PolicyDescription.from_dict(told) == policy.description


def test_its_chunk_is_what_the_description_promises(policy):
    description = policy.description
    policy.reset()
    chunk = policy.infer(InferenceRequest(look()))
    assert chunk.actions.shape == (description.chunk_length, len(description.spec.actions))
    assert chunk.actions.dtype == np.float64
    assert np.isfinite(chunk.actions).all()
    if NORMALISED_ACTIONS in description.capabilities:
        assert chunk.normalised.shape == chunk.actions.shape
        assert np.isfinite(chunk.normalised).all()
    else:
        assert not len(chunk.normalised)
    cameras = description.spec.cameras if TOKEN_SELECTIONS in description.capabilities else ()
    assert tuple(selection.camera for selection in chunk.selections) == cameras
    assert all(ms >= 0 for ms in chunk.stage_ms.values())


def test_after_a_reset_it_says_the_same_again(policy):
    def first_two():
        policy.reset()
        first = policy.infer(InferenceRequest(look(0)))
        second = policy.infer(InferenceRequest.after(look(1), first))
        return np.stack([first.actions, second.actions])

    np.testing.assert_array_equal(first_two(), first_two())


@pytest.mark.parametrize('mode', EXECUTION_MODES)
def test_it_takes_all_that_execution_knows(policy, mode):
    policy.reset()
    execution = Execution(mode, np.ones((3, 7)), np.ones((2, 7)), np.zeros((5, 7)), 2)
    assert len(policy.infer(InferenceRequest(look(), execution)).actions)


def test_it_knows_its_instructions_and_warms_up_for_them(policy):
    policy.reset()
    before = policy.infer(InferenceRequest(look())).actions
    policy.check_instruction(INSTRUCTION)
    chunk = warm_up(policy, 1, [INSTRUCTION])
    assert len(chunk.actions) == policy.description.chunk_length
    np.testing.assert_array_equal(policy.infer(InferenceRequest(look())).actions, before)


@pytest.mark.parametrize('mode', EXECUTION_MODES)
def test_it_moves_a_robot_in_lock_step(policy, mode):
    # As fast and as far as the policy says: this is about who is asked when.
    parameters = PolicyParameters(
        execution_mode=mode, max_tracking_error_m=0.0, max_step_translation_m=0.05,
        max_linear_velocity_m_s=1.0, max_linear_acceleration_m_s2=20.0,
        max_step_rotation_rad=0.5, max_angular_velocity_rad_s=10.0,
        max_angular_acceleration_rad_s2=200.0, workspace_min_m=(-9.0,) * 3,
        workspace_max_m=(9.0,) * 3)
    control = LockStepControl(policy, parameters, INSTRUCTION)
    chunks, moved = [], []
    for step in range(12):
        if control.needs_inference():
            chunks.append(control.infer(look(step)))
        moved.append(control.next_action(np.zeros(3), np.zeros(3)))
    assert len(chunks) == (2 if mode == 'sync' else 12)
    assert all(np.abs(action[:3]).max() > 0 for action in moved)


def test_a_recording_is_said_again_and_ends(small):
    recording = KINDS['recording'](small)
    said = [recording.infer(InferenceRequest(look(seed))) for seed in range(3)]
    again = RecordedPolicy(recording.description, recording.chunks)
    assert [again.infer(request) for request in recording.requests] == said
    with pytest.raises(ValueError, match='only 3 answers'):
        again.infer(recording.requests[0])
    again.reset()
    assert again.infer(recording.requests[0]) is said[0]


def test_a_description_says_in_which_modes_its_methods_mean_something():
    description = PolicyDescription(
        architecture='x', chunk_length=8, methods=('flashvla',), execution_modes=('sync',))
    description.check_mode('sync')
    with pytest.raises(ValueError, match=r"\(flashvla\) takes it that .* sync; it is 'async'"):
        description.check_mode('async')


def test_answers_across_steps_wrap_a_policy_that_is_not_even_here():
    policy = KINDS['answering'](None)
    chunks = [None]
    for seed in range(4):
        chunks.append(policy.infer(InferenceRequest.after(look(seed), chunks[-1])))
    assert [chunk.reused_by for chunk in chunks[1:]] == ['', '', 'flashvla', '']
    assert not any(selection.kept.any() for selection in chunks[3].selections)
    # Of what was executed while it was not asked, it hears when it is.
    assert [len(r.execution.executed) for r in policy.inside.requests] == [0, 8, 16]
    policy.reset()
    assert not policy.infer(InferenceRequest.after(look(), chunks[-1])).reused_by
