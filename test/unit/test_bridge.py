"""A state of seven numbers: OpenVLA-OFT on BridgeData V2, whose files say no more than that."""

import json
from pathlib import Path

import checkpoint_variants as variants
import numpy as np
import pytest

from vla_policy_node.contract.fit import check_fits
from vla_policy_node.contract.load import parse_contract
from vla_policy_node.families import read_model_config
from vla_policy_node.policy.interface import InferenceRequest, Observation
from vla_policy_node.policy.local import LocalPolicy

CONTRACTS = Path(__file__).parents[2] / 'config' / 'contracts'
LOW, HIGH = np.full(7, -1.0), np.full(7, 1.0)
NUMBERS = {'q01': LOW.tolist(), 'q99': HIGH.tolist()}
STATISTICS = {'bridge': {'action': {**NUMBERS, 'mask': [True] * 6 + [False]}, 'proprio': NUMBERS}}
NAMES = ('x', 'y', 'z', 'roll', 'pitch', 'yaw', 'gripper_opening')


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """As published: the weights tell how many numbers there are, and nothing what they are."""
    directory = variants.make(tmp_path_factory.mktemp('bridge') / 'policy', state=7, actions=7)
    (directory / 'config.json').write_text(json.dumps(variants.CONFIG))
    (directory / 'dataset_statistics.json').write_text(json.dumps(STATISTICS))
    return directory


def robot(rotation, gripper):
    """The end effector of the package, whose state is told in other words."""
    text = (CONTRACTS / 'end_effector.yaml').read_text()
    for old, (name, field) in zip(('rx', 'ry', 'rz'), rotation, strict=True):
        text = text.replace(f'name: {old}, unit: rad, field: {old}',
                            f'name: {name}, unit: rad, field: {field}')
    text = text.replace('name: left_finger, unit: m,', f'name: {gripper}, unit: m, joint: finger,')
    text = '\n'.join(line for line in text.splitlines() if 'right_finger' not in line)
    return parse_contract(text, 'robot.yaml')


def test_seven_numbers_are_those_of_bridge_in_chunks_of_five(checkpoint):
    spec = read_model_config(checkpoint).spec
    assert tuple(quantity.name for quantity in spec.state) == NAMES
    policy = LocalPolicy.load(checkpoint)
    assert policy.description.chunk_length == 5
    grey = dict.fromkeys(spec.cameras, np.full((56, 56, 3), 128, np.uint8))
    chunks = [policy.infer(InferenceRequest(Observation(grey, proprio, 'go'))).actions
              for proprio in (np.zeros(7), np.eye(7)[6])]
    assert chunks[0].shape == (5, 7)
    assert not np.array_equal(*chunks)


def test_a_contract_tells_them_as_fixed_axis_angles(checkpoint):
    angles = [('roll', 'euler_x'), ('pitch', 'euler_y'), ('yaw', 'euler_z')]
    check_fits(read_model_config(checkpoint).spec, robot(angles, 'gripper_opening'))


def test_a_robot_that_tells_something_else_is_refused(checkpoint):
    vector = [(name, name) for name in ('rx', 'ry', 'rz')]
    with pytest.raises(ValueError, match="is told 'roll', which the contract of end_effector doe"):
        check_fits(read_model_config(checkpoint).spec, robot(vector, 'gripper_opening'))


@pytest.mark.parametrize('names', [
    ('x', 'y', 'z', 'rx', 'ry', 'rz', 'gripper_opening'), tuple(f'state_{i}' for i in range(7))])
def test_names_in_the_configuration_say_what_else_they_are(checkpoint, tmp_path, names):
    directory = variants.copy(checkpoint, tmp_path / 'named')
    (directory / 'config.json').write_text(json.dumps({**variants.CONFIG, 'state': [*names]}))
    config = read_model_config(directory)
    assert tuple(quantity.name for quantity in config.spec.state) == names
    assert config.chunk_length == 8  # nothing says that it is Bridge
