"""The parameter files for public checkpoints are complete, and say what the checkpoints expect."""

import json
from dataclasses import fields
from pathlib import Path

import checkpoint_variants as variants
import numpy as np
import pytest

from vla_policy_node.checkpoints.hub import _ID
from vla_policy_node.control.action_spec import ActionSpec
from vla_policy_node.loop.parameters import PolicyParameters
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.system.description import describe
from vla_policy_node.system.files import read_config

CONFIG = Path(__file__).parents[2] / 'config'
FAMILIES = {'openvla_oft_libero': 'oft', 'lightvla_libero': 'last56'}
# Percentiles of the libero_10 data, rounded.
LOW = [-0.635, -0.774, -0.763, -0.0975, -0.148, -0.274, 0.0]
HIGH = [0.771, 0.846, 0.9375, 0.139, 0.160, 0.325, 1.0]


def parameters(family):
    written = read_config(CONFIG / f'{family}.yaml')['policy']
    return written, PolicyParameters(**{
        name: tuple(value) if isinstance(value, list) else value
        for name, value in written.items()})


@pytest.mark.parametrize('family', [*FAMILIES, 'cogact_bridge'])
def test_every_parameter_is_there_in_its_place_and_type(family):
    written, checked = parameters(family)
    assert list(written) == [field.name for field in fields(checked)]
    for name, value in written.items():
        default = getattr(PolicyParameters(), name)
        assert type(default) in (type(value), tuple), name


@pytest.mark.parametrize(('family', 'rows'), FAMILIES.items())
def test_what_the_checkpoints_expect(family, rows):
    _, checked = parameters(family)
    assert checked.action_rows == rows
    assert checked.method_names == (('lightvla',) if 'lightvla' in family else ())
    assert set(checked.camera_transforms.values()) == {'mirror_horizontal'}
    assert (checked.rotation_form, checked.control_rate_hz) == ('axis_angle', 20.0)
    assert (checked.gripper_open, checked.gripper_closed) == (1.0, 0.0)
    assert checked.chunk_length == 8
    assert _ID.fullmatch(checked.checkpoint)
    checked.action_spec().check_range(LOW, HIGH)


def test_cogact_averages_the_last_seven_chunks_as_its_authors_do_on_bridge():
    _, checked = parameters('cogact_bridge')
    assert checked.execution_mode == 'temporal_ensemble'
    assert checked.ensemble_weighting == 'adaptive'
    assert (checked.ensemble_alpha, checked.ensemble_horizon) == (0.1, 7)
    assert (checked.rotation_form, checked.control_rate_hz) == ('euler_xyz', 5.0)
    # The hub's snapshot has no tokenizer, so a directory with one is named instead.
    assert not _ID.fullmatch(checked.checkpoint)
    # About what small arms do in a step of 0.2 s; not read from a checkpoint.
    checked.action_spec().check_range(
        [-0.029, -0.042, -0.026, -0.081, -0.093, -0.208, 0.0],
        [0.028, 0.041, 0.040, 0.082, 0.078, 0.203, 1.0])


@pytest.mark.parametrize('family', FAMILIES)
def test_the_simulated_world_starts_with_it(family):
    nodes = {node.name: node for node in describe({
        'world': True, 'config': str(CONFIG / f'{family}.yaml')})}
    assert nodes['world'].parameters['image_width'] == 256
    assert nodes['policy'].parameters['frame_id'] == 'world'


@pytest.mark.parametrize('family', FAMILIES)
def test_a_policy_loads_with_its_settings(family, tmp_path):
    _, checked = parameters(family)
    policy = LocalPolicy.load(
        variants.make(tmp_path / 'policy'), methods=checked.method_names,
        method_settings=checked.settings_by_method(), action_rows=checked.action_rows,
        camera_transforms=checked.camera_transforms, chunk_length=checked.chunk_length)
    assert policy.description.action_rows == FAMILIES[family]


@pytest.mark.parametrize(('changes', 'low', 'high', 'sentence'), [
    ({'gripper_closed': -1.0}, LOW, HIGH,
     'gripper_open 1 and gripper_closed -1 do not fit the checkpoint, whose .* from 0 to 1'),
    ({}, [*LOW[:6], -1.0], HIGH, 'gripper actions go from -1 to 1'),
    ({'translation_scale_m': 1.0}, LOW, HIGH, 'translation_scale_m 1 does not fit .* 0.9375 m'),
    ({}, np.array(LOW) * 1000, HIGH, 'translations reach 774, which would be 38.7 m'),
    ({}, [1e-4] * 6 + [0], [2e-4] * 6 + [1], 'which would be 1e-05 m in one control period'),
    ({'rotation_scale_rad': 10.0}, LOW, HIGH, 'rotation_scale_rad 10 does not fit'),
    ({}, LOW * 2, HIGH * 2, 'actions of 14 dimensions; this robot takes 7'),
])
def test_statistics_that_do_not_fit_the_robot_are_refused(changes, low, high, sentence):
    spec = ActionSpec.libero()
    values = {name: getattr(spec, name) for name in (
        'frame_id', 'rotation_form', 'translation_scale_m', 'rotation_scale_rad', 'gripper_open',
        'gripper_closed')}
    with pytest.raises(ValueError, match=sentence):
        ActionSpec(**{**values, **changes}).check_range(low, high)


def test_a_gripper_that_never_moved_says_nothing():
    ActionSpec.libero().check_range([*LOW[:6], 1.0], [*HIGH[:6], 1.0])


def test_a_policy_tells_the_range_of_its_data(tmp_path):
    directory = variants.make(tmp_path / 'policy')
    (statistics,) = json.loads((directory / 'dataset_statistics.json').read_text()).values()
    low, high = LocalPolicy.load(directory).description.action_range
    assert (list(low), list(high)) == (statistics['action']['q01'], statistics['action']['q99'])
