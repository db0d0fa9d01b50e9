"""Normalising as openpi and LeRobot do, by what a checkpoint's own files say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from value_files import ACTION, STATE, made_up, tensors, write_assets, write_processors

from vla_policy_node.checkpoints import layout
from vla_policy_node.checkpoints.conventions import (
    ALOHA_PI0,
    ALOHA_SMOLVLA,
    Convention,
    mask_of,
    mask_without,
)
from vla_policy_node.checkpoints.fingerprint import fingerprint
from vla_policy_node.checkpoints.processors import read_processors
from vla_policy_node.checkpoints.scaled_statistics import ScaledStatistics
from vla_policy_node.checkpoints.scaling import MODES, Rule, Scaling
from vla_policy_node.checkpoints.value_files import load_statistics, sizes_of
from vla_policy_node.policy.assumptions import unread_steps

DATA = Path(__file__).parents[1] / 'data' / 'values'
OPENPI = dict(np.load(DATA / 'openpi_transforms.npz'))
LEROBOT = dict(np.load(DATA / 'normalization_and_aloha.npz'))
NUMBERS = {STATE: made_up(3, 1), ACTION: made_up(2, 2)}
RULES = [Rule(mode) for mode in MODES] + [
    make(mode) for make in (Rule.openpi, Rule.older_lerobot) for mode in ('MEAN_STD', 'QUANTILES')]


def near(value, reference, share=2e-6):
    scale = np.maximum(1, np.abs(reference))
    return np.testing.assert_allclose(value / scale, reference / scale, rtol=0, atol=share)


def of_openpi(prefix=''):
    names = ('mean', 'std', 'q01', 'q99')
    return [{name: OPENPI[f'{prefix}stats_{part}_{name}'] for name in names}
            for part in ('state', 'actions')]


def load(folder, key='', sizes=(3, 2), mode='MEAN_STD', aloha=ALOHA_PI0):
    return load_statistics(folder, key, sizes, mode, aloha)


@pytest.mark.parametrize('mode', MODES)
def test_numbers_are_normalised_as_lerobot_does_it_also_those_that_never_change(mode):
    statistics = {key.removeprefix('stat_'): value.astype(np.float32).astype(float)
                  for key, value in LEROBOT.items() if key.startswith('stat_')}
    line = Scaling.of(Rule(mode), statistics, 5)
    near(line.normalise(LEROBOT['x']), LEROBOT[f'norm_{mode}'])
    near(line.unnormalise(LEROBOT['x']), LEROBOT[f'unnorm_{mode}'])


@pytest.mark.parametrize(('mode', 'name'), [('MEAN_STD', 'meanstd'), ('QUANTILES', 'quantile')])
def test_numbers_are_normalised_as_openpi_does_it_also_those_without_statistics(mode, name):
    state, actions = of_openpi()
    rule = Rule.openpi(mode)
    near(Scaling.of(rule, state, 14).normalise(OPENPI['raw_state']), OPENPI[f'norm_state_{name}'])
    near(Scaling.of(rule, actions, 14).normalise(OPENPI['raw_actions']),
         OPENPI[f'norm_actions_{name}'])
    near(Scaling.of(rule, actions, 32).unnormalise(OPENPI[f'model_out_{name}']),
         OPENPI[f'unnorm_actions_{name}'])


@given(st.sampled_from(RULES), st.lists(st.floats(-100, 100), min_size=3, max_size=3),
       st.integers(0, 99))
def test_unnormalising_is_the_inverse_and_nothing_is_clipped(rule, values, seed):
    line = Scaling.of(rule, made_up(3, seed), 3)
    near(line.unnormalise(line.normalise(np.array(values))), np.array(values), 1e-4)


@pytest.mark.parametrize(('mode', 'model', 'mask'), [
    ('MEAN_STD', 'pi0', [6, -1, 6, -1]), ('QUANTILES', 'pi05', [6, -1, 6, -1])])
def test_an_aloha_answers_as_through_openpis_transforms(mode, model, mask):
    rule = Rule.openpi(mode)
    made = ScaledStatistics.of(
        'trossen', *[(rule, part) for part in of_openpi('aloha_')], (14, 14),
        Convention(mask_of(mask), ALOHA_PI0))
    raw = OPENPI['aloha_state_raw']
    near(made.normalise_proprio(raw), OPENPI[f'aloha_{model}_state_in'][:14])
    near(made.unnormalise_actions(OPENPI[f'aloha_{model}_x0'][:, :14], raw),
         OPENPI[f'aloha_{model}_actions_out'])
    near(made.normalise_actions(OPENPI['aloha_actions_raw'], raw),
         OPENPI[f'aloha_{model}_actions_target'][:, :14])


@pytest.mark.parametrize(('mode', 'model', 'mask'), [
    ('MEAN_STD', 'pi0', [6, -1]), ('QUANTILES', 'pi05', [])])
def test_pi0_of_libero_adds_the_state_and_pi05_does_not(mode, model, mask):
    rule = Rule.openpi(mode)
    made = ScaledStatistics.of(
        'libero', *[(rule, part) for part in of_openpi('libero_')], (8, 7),
        Convention(mask_of(mask)))
    answer = OPENPI[f'libero_{model}_x0'][:, :7]
    near(made.unnormalise_actions(answer, OPENPI['libero_state']),
         OPENPI[f'libero_{model}_actions_out'])


def test_smolvla_turns_an_aloha_in_its_own_way():
    near(ALOHA_SMOLVLA.state_in(LEROBOT['aloha_state_in']), LEROBOT['aloha_state_decoded'])
    near(ALOHA_SMOLVLA.actions_out(LEROBOT['aloha_action_in']), LEROBOT['aloha_action_encoded'])
    near(ALOHA_SMOLVLA.actions_in(LEROBOT['aloha_action_in']),
         LEROBOT['aloha_action_encoded_inverse'])


@given(st.integers(0, 99), st.booleans())
def test_a_target_unnormalised_is_the_action_whatever_the_convention(seed, late):
    random = np.random.default_rng(seed)
    state, actions = random.uniform(0.1, 0.9, 14), random.uniform(0.1, 0.9, (4, 14))
    convention = Convention(tuple(random.random(14) < 0.5), ALOHA_SMOLVLA, late)
    numbers = made_up(14, seed)
    numbers |= {'std': numbers['std'] + 0.1}
    made = ScaledStatistics.of(
        '', (Rule('MEAN_STD'), numbers), (Rule('MEAN_STD'), numbers), (14, 14), convention)
    near(made.unnormalise_actions(made.normalise_actions(actions, state), state), actions, 1e-5)


@pytest.mark.parametrize('robot', [ALOHA_PI0, ALOHA_SMOLVLA])
def test_the_range_of_an_alohas_state_is_in_its_own_units(robot):
    state = np.linspace(0.05, 0.95, 14)
    near(robot.state_out(robot.state_in(state)), state)
    told = robot.state_in(state)
    made = ScaledStatistics.of(
        '', (Rule('MIN_MAX'), {'min': told - 0.1, 'max': told + 0.1}),
        (Rule('MIN_MAX'), {'min': told, 'max': told + 1}), (14, 14), Convention((), robot))
    assert ((made.proprio_seen[0] < state) & (state < made.proprio_seen[1])).all()


def test_the_range_of_relative_actions_reaches_as_far_as_the_state_and_further():
    numbers = {'min': np.full(2, -1.0), 'max': np.full(2, 1.0)}
    small = {'q01': np.full(2, -0.1), 'q99': np.full(2, 0.1), **numbers}
    made = ScaledStatistics.of(
        '', (Rule('MIN_MAX'), numbers), (Rule('MIN_MAX'), small), (2, 2), Convention((True,)))
    assert made.action_low.tolist() == pytest.approx([-1.1, -0.1])
    assert made.action_high.tolist() == pytest.approx([1.1, 0.1])


@pytest.mark.parametrize('modes', [('MEAN_STD', 'QUANTILES'), ('MIN_MAX', 'IDENTITY')])
def test_the_mode_is_that_of_the_processors_whatever_the_kind(tmp_path, modes):
    write_processors(tmp_path, NUMBERS, modes, normalization_mapping={
        'STATE': 'QUANTILE10', 'ACTION': 'QUANTILE10'})
    made = load(tmp_path, mode='QUANTILES')
    state, actions = np.ones(3), np.ones((4, 2))
    for rule, feature, got, value in (
            (Rule(modes[0]), STATE, made.normalise_proprio(state), state),
            (Rule(modes[1]), ACTION, made.normalise_actions(actions), actions)):
        near(got, Scaling.of(rule, NUMBERS[feature], value.shape[-1]).normalise(value))
    assert made.key == 'lerobot' and sizes_of(tmp_path) == (3, 2)
    assert [*layout.read_statistics_document(tmp_path)] == ['lerobot']


def test_what_has_no_statistics_of_its_own_stays_as_it_is(tmp_path):
    write_processors(tmp_path, {ACTION: NUMBERS[ACTION]})
    near(load(tmp_path).normalise_proprio(np.array([1.0, 2, 3])), np.array([1.0, 2, 3]))


@pytest.mark.parametrize('other', ['actions', 'action_', 'observation.action'])
def test_actions_without_statistics_are_no_commands_for_a_robot(tmp_path, other):
    write_processors(tmp_path, {STATE: NUMBERS[STATE], other: NUMBERS[ACTION]})
    with pytest.raises(ValueError, match=r'lerobot\.actions? have no mean'):
        load(tmp_path)
    write_processors(tmp_path, {STATE: NUMBERS[STATE]}, ('MEAN_STD', 'IDENTITY'))
    near(load(tmp_path).unnormalise_actions(np.ones((1, 2))), np.ones((1, 2)))


def test_steps_are_known_by_their_class_too_and_others_are_named(tmp_path):
    write_processors(tmp_path, NUMBERS, before=[('crop_everything', {})])
    for name in ('preprocessor', 'postprocessor'):
        path = tmp_path / f'policy_{name}.json'
        found = json.loads(path.read_text())
        kind = found['steps'][-1].pop('registry_name').split('_')[0].title()
        found['steps'][-1]['class'] = f'lerobot.processor.{kind}ProcessorStep'
        path.write_text(json.dumps(found))
    near(load(tmp_path).normalise_proprio(NUMBERS[STATE]['mean']), np.zeros(3))
    near(load(tmp_path).unnormalise_actions(np.zeros(2)), NUMBERS[ACTION]['mean'])
    assert read_processors(tmp_path).unknown == ('crop_everything',)
    (said,) = unread_steps(tmp_path)
    assert said.guessed and 'crop_everything' in str(said)


def test_numbers_that_do_not_count_from_the_state_need_none_there(tmp_path):
    write_processors(tmp_path, NUMBERS, delta_action_mask=[1, -1])
    made = load(tmp_path, sizes=(1, 2))
    near(made.unnormalise_actions(np.zeros((1, 2)), np.array([5.0])),
         NUMBERS[ACTION]['mean'] + np.array([[5.0, 0]]))


def test_statistics_inside_the_weights_are_used_as_they_were(tmp_path):
    write_processors(tmp_path, {})
    for path in tmp_path.glob('policy_*'):
        path.unlink()
    (tmp_path / 'config.json').write_text(json.dumps(
        {'type': 'pi0', 'normalization_mapping': {'STATE': 'MIN_MAX', 'ACTION': 'MEAN_STD'}}))
    save_file({
        'model.weight': torch.zeros(2),
        **tensors({'normalize_inputs.buffer_observation_state': NUMBERS[STATE],
                   'unnormalize_outputs.buffer_action': NUMBERS[ACTION]}),
    }, tmp_path / 'model.safetensors')
    made, low, high = load(tmp_path), NUMBERS[STATE]['min'], NUMBERS[STATE]['max']
    near(made.normalise_proprio(low + (high - low) / 4), np.full(3, -0.5))
    near(made.unnormalise_actions(np.ones(2)), NUMBERS[ACTION]['mean'] + NUMBERS[ACTION]['std'])


def test_weights_may_hold_the_statistics_of_several_robots(tmp_path):
    (tmp_path / 'config.json').write_text('{"type": "smolvla"}')
    robots = {robot: (made_up(3, seed), made_up(2, seed + 1))
              for seed, robot in enumerate(('so100', 'so100-blue'))}
    save_file({name: tensor for robot, (state, action) in robots.items() for name, tensor in
               tensors({f'normalize_inputs.{robot}_buffer_observation_state': state,
                        f'normalize_targets.{robot}_buffer_action': action,
                        f'unnormalize_outputs.{robot}_buffer_action': action}).items()},
              tmp_path / 'model.safetensors')
    with pytest.raises(ValueError, match=r'several robots; choose one of so100, so100-blue'):
        load(tmp_path)
    made = load(tmp_path, 'so100-blue')
    near(made.unnormalise_actions(np.zeros(2)), robots['so100-blue'][1]['mean'])
    assert sizes_of(tmp_path) == (3, 2)


def test_statistics_of_a_data_set_can_be_put_beside_the_weights(tmp_path):
    write_processors(tmp_path, {}, ('QUANTILES', 'QUANTILES'))
    with pytest.raises(ValueError, match=r'meta/stats\.json'):
        load(tmp_path)
    (tmp_path / 'meta').mkdir()
    (tmp_path / 'meta' / 'stats.json').write_text(json.dumps(
        {feature: {name: values.tolist() for name, values in part.items()}
         for feature, part in NUMBERS.items()}))
    near(load(tmp_path).normalise_proprio(NUMBERS[STATE]['q99']), np.ones(3))


def test_of_several_robots_one_has_to_be_chosen(tmp_path):
    robots = {robot: (made_up(14, seed), made_up(14, seed + 1))
              for seed, robot in enumerate(('trossen', 'physical-intelligence/libero'))}
    write_assets(tmp_path, robots, action_dim=32)
    with pytest.raises(ValueError, match=r'physical-intelligence/libero, trossen.*statistics-key'):
        load(tmp_path, sizes=(14, 14))
    with pytest.raises(ValueError, match="no statistics 'droid'"):
        load(tmp_path, 'droid', (14, 14))
    made = load(tmp_path, 'trossen', (8, 7), 'QUANTILES')
    part = {name: values[:8] for name, values in robots['trossen'][0].items()}
    near(made.normalise_proprio(np.zeros(8)),
         Scaling.of(Rule.openpi('QUANTILES'), part, 8).normalise(np.zeros(8)))


def test_robots_of_other_sizes_are_not_taken_for_each_other(tmp_path):
    robots = {'droid': (made_up(8, 1), made_up(8, 2)), 'libero': (made_up(8, 3), made_up(7, 4))}
    write_assets(tmp_path, robots, action_dim=32)
    assert load(tmp_path, 'libero', (8, 7)).key == 'libero'
    with pytest.raises(ValueError, match=r'droid have 8 numbers under actions.*"actions": 8'):
        load(tmp_path, 'droid', (8, 7))
    (tmp_path / 'config.json').write_text('{"action_dim": 32, "actions": 8}')
    assert load(tmp_path, 'droid', (8, 8)).key == 'droid'


def test_an_adapter_has_the_robots_of_its_base(tmp_path):
    write_assets(tmp_path / 'base', {'droid': (made_up(3, 7), made_up(2, 8))})
    save_file({'weight': torch.zeros(1)}, tmp_path / 'base' / 'model.safetensors')
    (tmp_path / 'adapter').mkdir()
    (tmp_path / 'adapter' / 'adapter_config.json').write_text(
        '{"base_model_name_or_path": "../base"}')
    assert load(tmp_path / 'adapter').key == 'droid'


def test_a_robot_of_openpis_assets_can_be_chosen_beside_other_statistics(tmp_path):
    robots = {'droid': (made_up(3, 7), made_up(2, 8))}
    write_assets(tmp_path, robots)
    write_processors(tmp_path, NUMBERS)
    assert load(tmp_path).key == 'lerobot'
    near(load(tmp_path, 'droid').normalise_proprio(np.zeros(3)),
         Scaling.of(Rule('MEAN_STD'), robots['droid'][0], 3).normalise(np.zeros(3)))
    with pytest.raises(ValueError, match='lerobot, droid'):
        load(tmp_path, 'franka')


def test_what_openpis_converter_left_beside_the_checkpoint_is_said(tmp_path):
    (tmp_path / 'assets').mkdir()
    (tmp_path / 'checkpoint').mkdir()
    (tmp_path / 'checkpoint' / 'config.json').write_text('{}')
    with pytest.raises(ValueError, match=r'copy .*assets into it'):
        load(tmp_path / 'checkpoint')


@pytest.mark.parametrize('mode', ['MEAN_STD', 'QUANTILES', 'MIN_MAX'])
def test_a_number_that_never_changed_is_no_farther_off_than_it_is(mode):
    still = np.full(1, 0.04, np.float32).astype(float)  # what a file holds of 0.04
    numbers = {name: still for name in ('mean', 'q01', 'q99', 'min', 'max')} | {'std': 0 * still}
    made = Scaling.of(Rule(mode), numbers, 1).normalise(np.array([0.04]))
    assert made == (0 if mode == 'MEAN_STD' else -1)


def test_which_actions_are_relative_is_what_the_files_say(tmp_path):
    names = ['shoulder', 'Gripper.pos']
    steps = [('relative_actions_processor', {
        'enabled': True, 'exclude_joints': ['gripper'], 'action_names': names})]
    write_processors(tmp_path, NUMBERS, before=steps, after=[
        ('absolute_actions_processor', {'enabled': True})])
    made, state = load(tmp_path), np.array([5.0, 7, 9])
    near(made.unnormalise_actions(np.zeros((1, 2)), state),
         NUMBERS[ACTION]['mean'] + np.array([[5.0, 0]]))
    with pytest.raises(ValueError, match='count from the state, which is missing'):
        made.unnormalise_actions(np.zeros((1, 2)))
    write_processors(tmp_path / 'openpi', NUMBERS, delta_action_mask=[-1, 1])
    assert load(tmp_path / 'openpi').convention.relative == (False, True)
    with pytest.raises(ValueError, match='delta_action_mask'):
        write_processors(tmp_path / 'wrong', NUMBERS, delta_action_mask=[3])
        load(tmp_path / 'wrong')


def test_without_names_every_number_is_relative():
    assert mask_without(None, ['gripper'], 3) == (True, True, True)
    assert mask_without(['arm', 'left_GRIPPER'], ['gripper', ''], 3) == (True, False, True)


@pytest.mark.parametrize(('change', 'sentence'), [
    ({'std': np.array([-1, 1, 1], np.float32)}, 'a deviation is below 0'),
    ({'mean': np.full(3, np.inf, np.float32)}, 'must be finite'),
    ({'mean': np.zeros(2, np.float32)}, 'different lengths'),
    ({'mean': np.zeros(2, np.float32), 'std': np.ones(2, np.float32)}, 'of 2 numbers for 3')])
def test_statistics_that_cannot_be_are_refused_in_a_sentence(tmp_path, change, sentence):
    write_processors(tmp_path, {**NUMBERS, STATE: {**NUMBERS[STATE], **change}})
    with pytest.raises(ValueError, match=sentence):
        load(tmp_path)


@pytest.mark.parametrize('wrong', [
    {'steps': 3}, {'steps': [{'registry_name': 'normalizer_processor', 'state_file': '../a'}]},
    {'steps': [{'registry_name': 'normalizer_processor', 'config': {'norm_map': {'STATE': 'X'}}}]},
    {'steps': [{'registry_name': 'normalizer_processor',
                'config': {'norm_map': {'VISUAL': 'MEAN_STD'}}}]}])
def test_processors_that_cannot_be_followed_are_refused_in_a_sentence(tmp_path, wrong):
    write_processors(tmp_path, NUMBERS)
    (tmp_path / 'policy_preprocessor.json').write_text(json.dumps(wrong))
    with pytest.raises(ValueError, match=r'policy_preprocessor\.json'):
        load(tmp_path)


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(['policy_preprocessor.json', 'policy_postprocessor.json',
                        'policy_preprocessor_step_0_normalizer_processor.safetensors']),
       st.integers(0, 4000), st.binary(max_size=8), st.integers(0, 8))
def test_damaged_files_end_in_a_sentence(tmp_path_factory, name, place, noise, cut):
    folder = tmp_path_factory.getbasetemp() / 'damaged_values'
    write_processors(folder, NUMBERS)
    content = (folder / name).read_bytes()
    place %= len(content)
    (folder / name).write_bytes(content[:place] + noise + content[place + cut:])
    try:
        made = load(folder)
    except ValueError as error:
        assert str(error).endswith('.')
    else:
        assert made.normalise_proprio(np.zeros(3)).shape == (3,)


def test_other_statistics_are_another_policy(tmp_path):
    found = set()
    for seed in (1, 2):
        write_processors(tmp_path, {STATE: made_up(3, seed), ACTION: NUMBERS[ACTION]})
        save_file({'weight': torch.zeros(1)}, tmp_path / 'model.safetensors')
        found.add(fingerprint(tmp_path))
    assert len(found) == 2


def test_what_features_were_called_in_training_is_known(tmp_path):
    names = {'observation.images.top': 'observation.images.camera1'}
    write_processors(tmp_path, NUMBERS, before=[
        ('rename_observations_processor', {'rename_map': names})])
    assert read_processors(tmp_path).renamed == names


def test_a_missing_mode_of_the_file_is_named(tmp_path):
    numbers = {name: made for name, made in NUMBERS[STATE].items() if name != 'q10'}
    write_processors(tmp_path, {**NUMBERS, STATE: numbers}, ('QUANTILE10', 'MEAN_STD'))
    with pytest.raises(ValueError, match=r'lerobot\.state have no q10'):
        load(tmp_path)
