"""What a checkpoint does not say is said aloud, tested where weights can tell, and logged."""

import json
import logging
from pathlib import Path

import checkpoint_variants as variants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from vla_policy_node import cli
from vla_policy_node.checks import assumed, decoding
from vla_policy_node.checks.behaviour import PrismaticRun
from vla_policy_node.checks.findings import FAIL, PASS, SKIP, WARN
from vla_policy_node.checks.report import check_checkpoint
from vla_policy_node.families import read_model_config
from vla_policy_node.loop.loading import load_ready
from vla_policy_node.loop.parameters import PolicyParameters
from vla_policy_node.policy import load_policy
from vla_policy_node.policy.assumptions import Assumed
from vla_policy_node.policy.interface import InferenceRequest, Observation
from vla_policy_node.policy.local import LocalPolicy

SHIPPED = Path(__file__).parents[2] / 'checkpoints' / 'libero_object'
GUESSED = Assumed('decoding', '', '', guessed=True)
PUBLIC = 'openvla-7b-oft-finetuned-libero-10'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp('assumptions')
    return {head: variants.make(root / head, head) for head in ('l1', 'autoregressive')}


@pytest.fixture
def copy(made, tmp_path):
    return lambda head, name='': variants.copy(made[head], tmp_path / (name or head))


def say(directory, **entries):
    path = directory / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def check(directory, *options):
    result = CliRunner().invoke(cli.app, ['check', str(directory), *options])
    return result.exit_code, result.output, ' '.join(result.output.split())


def findings(directory):
    return {finding.name: finding for finding in check_checkpoint(directory)}


def answer_in(directory, wanted):
    """Give the vocabulary head weights that answer with action tokens in one decoding only."""
    trial = PrismaticRun.prepare(directory, variants.load(directory))
    head, sign = trial.model.action_head, 1 if wanted == decoding.PARALLEL else -1
    share, seen = decoding._share, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, '_share',
                      lambda model, states: (seen.append(states[0]), share(model, states))[1])
        for _ in range(3):  # what is said decides what comes after it
            seen.clear()
            decoding.share_in_parallel(trial), decoding.share_in_turn(trial)
            rows, wish = torch.cat(seen), torch.full((sum(map(len, seen)),), -8.0 * sign)
            wish[: len(seen[0])] *= -1
            weight = torch.ones(len(rows))
            weight[len(seen[0]) :] = 8
            direction = torch.linalg.lstsq(rows * weight[:, None], (wish * weight)[:, None])
            head.lm_head.weight.zero_()
            head.lm_head.weight[head.ids_end - head.bins : head.ids_end] = (
                direction.solution[:, 0])
    path = directory / 'model.safetensors'
    tensors = load_file(path)
    tensors['language_model.lm_head.weight'] = head.lm_head.weight.clone()
    save_file(tensors, path)


# --- decoding ---


def test_a_discrete_policy_with_one_camera_is_not_taken_for_openvla(copy):
    directory = copy('autoregressive')
    answer_in(directory, decoding.PARALLEL)
    code, _, text = check(directory)
    assert code == 1
    assert 'taken for one after the other (OpenVLA); write "head": "discrete" into' in text
    assert 'All checks passed' not in text
    say(directory, head='discrete', proprio=False, cameras=1)
    found = findings(directory)
    assert (found['decoding'].verdict, 'as assumed' in found['decoding'].text) == (PASS, True)


def test_an_openvla_is_known_by_its_weights(copy):
    directory = copy('autoregressive')
    answer_in(directory, decoding.SERIAL)
    found = findings(directory)['decoding']
    assert (found.verdict, 'as assumed' in found.text) == (PASS, True)
    say(directory, head='discrete', proprio=False, cameras=1)
    trial = PrismaticRun.prepare(directory, variants.load(directory))
    found = decoding.check_decoding(trial, GUESSED)
    assert (found.verdict, '"head": "autoregressive"' in found.text) == (FAIL, True)


def test_where_weights_do_not_tell_a_guess_is_a_warning_and_no_success(copy):
    directory = copy('autoregressive')
    code, _, text = check(directory)
    assert code == 0
    assert 'does not tell; guessed: one after the other (OpenVLA)' in text
    assert 'All checks passed' not in text
    assert 'this may be wrong: decoding' in text
    assert text.endswith('Guessed, because nothing says it: decoding, transforms.')
    say(directory, head='autoregressive', camera_transforms={'third_person': 'none'})
    code, _, text = check(directory)
    assert (code, text.endswith('All checks passed.')) == (0, True)


def test_a_head_of_its_own_needs_no_test(made):
    trial = PrismaticRun.prepare(made['l1'], variants.load(made['l1']))
    assert decoding.check_decoding(trial, GUESSED).verdict == SKIP


@pytest.mark.parametrize(('parallel', 'serial', 'made_for'), [
    (0.99, 0.02, 'discrete'), (0.02, 0.99, 'autoregressive'), (0.99, 0.9, ''), (0.01, 0.008, ''),
    (0.3, 0.01, ''), (1.0, 1.0, '')])
def test_only_what_stands_out_tells(parallel, serial, made_for):
    shares = {decoding.PARALLEL: parallel, decoding.SERIAL: serial}
    assert decoding.made_for(shares) == made_for


def test_untrained_weights_are_a_warning_even_if_a_file_names_their_head(copy):
    directory = copy('autoregressive')
    say(directory, head='autoregressive')
    model = variants.load(directory)
    model.action_head.lm_head.weight.zero_()
    found = decoding.check_decoding(
        PrismaticRun.prepare(directory, model), Assumed('decoding', '', 'config.json: head'))
    assert (found.verdict, 'untrained' in found.text) == (WARN, True)


# --- the list ---


def listed(directory, **options):
    return {one.name: one for one in assumed.all_assumptions(directory, **options)}


def test_the_list_names_all_and_fits_80_columns(made):
    _, output, _ = check(made['l1'])
    table = output.split('taken for granted')[1].split('\n\n')[0]
    assert max(map(len, table.splitlines()[1:])) <= 80
    for name in ('decoding', 'cameras', 'proprio', 'actions', 'chunk', 'action rows', 'ranges',
                 'crop', 'transforms', 'statistics', 'tokenizer', 'prompt'):
        assert f'\n{name} ' in table, name
    assert table.count('guessed: ') == 3


def test_each_has_its_source(copy):
    directory = copy('l1')
    found = listed(directory)
    assert {name for name, one in found.items() if one.guessed} == {
        'cameras', 'chunk', 'transforms'}
    assert found['decoding'].source == 'action_head--7_checkpoint.safetensors'
    assert found['proprio'].source.startswith('proprio_projector--7_checkpoint.safetensors')
    assert found['statistics'].source == 'the only one in dataset_statistics.json'
    say(directory, cameras=['front', 'wrist'], chunk_length=5,
        camera_transforms={'front': 'rotate_180'})
    found = listed(directory)
    assert not any(one.guessed for one in found.values())
    assert found['cameras'].value == '2: front, wrist'
    assert found['cameras'].source == 'config.json: cameras'
    assert found['chunk'] == Assumed('chunk', '5', 'config.json: chunk_length')
    assert found['transforms'].value == 'front rotate_180, wrist none'


def test_a_policy_without_proprio_and_with_one_camera_says_both(copy):
    directory = copy('l1')
    for path in directory.glob('proprio_projector--*'):
        path.unlink()
    say(directory, proprio=False)
    found = listed(directory)
    assert (found['proprio'].value, found['proprio'].source) == ('none', 'config.json: proprio')
    assert found['cameras'].guessed
    say(directory, cameras=1)
    assert listed(directory)['cameras'].source == 'config.json: cameras'


def test_public_names_say_what_files_do_not(copy):
    found = listed(copy('l1', PUBLIC))
    assert not any(one.guessed for one in found.values())
    assert found['cameras'].source == 'public name openvla-7b-oft-finetuned-libero'
    found = listed(copy('autoregressive', 'openvla-7b'))
    assert found['decoding'].source == 'public name openvla-7b'
    assert not any(one.guessed for one in found.values())


def test_what_contradicts_a_public_name_is_a_warning(copy):
    directory = copy('l1', PUBLIC)
    say(directory, cameras=['front', 'side', 'wrist'])
    found = findings(directory)['assumptions']
    assert (found.verdict, found.text.startswith('cameras: not as in')) == (WARN, True)
    found = findings(copy('autoregressive', f'{PUBLIC}-copy'))['assumptions']
    assert (found.verdict, found.text.startswith('decoding: not as in')) == (WARN, True)


@pytest.mark.parametrize('entries', [
    {'cameras': 3}, {'cameras': ['a', 'b']}, {'cameras': 2}, {'chunk_length': 8},
    {'proprio': True}, {'state': ['a', 'b']}])
def test_what_no_openvla_has_is_refused_instead_of_passed_over(copy, entries):
    directory = copy('autoregressive')
    say(directory, **entries)
    with pytest.raises(ValueError, match=f'has {next(iter(entries))} .*"head": "discrete"'):
        read_model_config(directory)
    say(directory, **dict.fromkeys(entries), head='autoregressive')
    read_model_config(directory)


def test_a_projector_that_nobody_feeds_is_a_failure(copy):
    directory = copy('l1')
    say(directory, proprio=False)
    found = findings(directory)['proprio']
    assert found.verdict == FAIL
    assert 'by config.json the policy is not told it' in found.text


def test_without_a_tokenizer_a_checkpoint_fails(copy):
    directory = copy('l1')
    (directory / 'tokenizer.json').unlink()
    code, _, text = check(directory)
    assert code == 1
    assert 'has no tokenizer.json; is it a complete checkpoint? ' in text
    assert 'tokenizer missing' in text


# --- pictures ---


def transforms(directory, chosen=None, **options):
    return LocalPolicy.load(
        directory, camera_transforms=chosen, **options).description.camera_transforms


@pytest.mark.parametrize(('name', 'transform'), [
    (PUBLIC, 'mirror_horizontal'), ('LightVLA-libero-goal', 'mirror_horizontal'),
    ('models--moojink--openvla-7b-oft-finetuned-libero-goal', 'mirror_horizontal'),
    ('models--moojink--openvla-7b-oft-finetuned-libero-goal/snapshots/ab12', 'mirror_horizontal'),
    ('openvla-7b-oft-finetuned-libero-spatial-object-goal-10', 'mirror_horizontal'),
    ('my-robot', 'none'), (f'{PUBLIC}/my-robot', 'none'), (f'{PUBLIC}/snapshots/my-robot', 'none'),
    (f'{PUBLIC}+my_robot+b8+lr-0.0005+lora-r32--image_aug--10000_chkpt', 'none')])
def test_public_names_turn_pictures_unless_something_else_is_asked(copy, name, transform):
    directory = copy('l1', name)
    assert {*transforms(directory).values()} == {transform}
    assert {*transforms(directory, {'third_person': 'auto', 'wrist': 'auto'}).values()} == {
        transform}
    assert transforms(directory, {'wrist': 'rotate_180'}) == {
        'third_person': transform, 'wrist': 'rotate_180'}
    assert {*transforms(directory, dict.fromkeys(('third_person', 'wrist'), 'none')).values()} == {
        'none'}


def test_config_json_has_the_last_word_before_the_user(copy):
    directory = copy('l1', PUBLIC)
    say(directory, camera_transforms={'wrist': 'rotate_180'})
    assert transforms(directory) == {'third_person': 'none', 'wrist': 'rotate_180'}
    say(directory, camera_transforms={'wirst': 'rotate_180'})
    with pytest.raises(ValueError, match=r'camera_transforms.wirst, which is not known; .*wrist'):
        read_model_config(directory)
    say(directory, camera_transforms={'wrist': 'upside_down'})
    with pytest.raises(ValueError, match=r'camera_transforms.wrist .* must be one of'):
        read_model_config(directory)


def test_public_data_turn_pictures(copy):
    directory = copy('l1')
    path = directory / 'dataset_statistics.json'
    (statistics,) = json.loads(path.read_text()).values()
    path.write_text(json.dumps({'libero_goal_no_noops': statistics, 'mine': statistics}))
    assert {*transforms(directory, statistics_key='mine').values()} == {'none'}
    turned = LocalPolicy.load(directory, statistics_key='libero_goal_no_noops')
    plain = LocalPolicy.load(
        directory, statistics_key='libero_goal_no_noops',
        camera_transforms=dict.fromkeys(('third_person', 'wrist'), 'none'))
    images = {camera: np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)
              for camera in ('third_person', 'wrist')}
    mirrored = {camera: np.ascontiguousarray(image[:, ::-1]) for camera, image in images.items()}

    def act(policy, images):
        return policy.infer(InferenceRequest(Observation(images, np.zeros(8), 'go'))).actions

    np.testing.assert_array_equal(act(turned, images), act(plain, mirrored))
    assert not np.array_equal(act(turned, images), act(plain, images))


@pytest.mark.parametrize(('head', 'name', 'data', 'transform'), [
    ('autoregressive', 'openvla-7b', 'libero_goal_no_noops', 'mirror_horizontal'),
    ('autoregressive', 'openvla-7b', 'my_robot', 'none'), ('l1', PUBLIC, 'my_robot', 'none')])
def test_a_run_called_after_what_it_began_with_is_known_by_its_data(
    copy, head, name, data, transform
):
    directory = copy(head, name)
    path = directory / 'dataset_statistics.json'
    (statistics,) = json.loads(path.read_text()).values()
    path.write_text(json.dumps({data: statistics}))
    assert {*transforms(directory).values()} == {transform}


def test_of_several_data_sets_that_turn_pictures_alike_none_need_be_chosen(copy):
    directory = copy('l1')
    path = directory / 'dataset_statistics.json'
    (statistics,) = json.loads(path.read_text()).values()
    suites = dict.fromkeys(('libero_goal_no_noops', 'libero_10_no_noops'), statistics)
    path.write_text(json.dumps(suites))
    assert listed(directory)['transforms'].value == 'mirror_horizontal'
    path.write_text(json.dumps(suites | {'mine': statistics}))
    assert listed(directory)['transforms'].guessed


# --- the log ---


def test_loading_logs_what_was_guessed_one_line_each(copy, caplog):
    load_policy(copy('l1'))
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(':')[0] for line in lines] == [
        'Guessed cameras', 'Guessed chunk', 'Guessed transforms']
    assert all('\n' not in line and line.endswith('config.json.') for line in lines)


def test_what_was_asked_is_no_guess(copy, caplog):
    directory = copy('l1')
    say(directory, cameras=2)
    load_policy(directory, chunk_length=4,
                camera_transforms=dict.fromkeys(('third_person', 'wrist'), 'none'))
    assert not caplog.records


def test_pictures_turned_by_a_public_name_are_logged(copy, caplog):
    directory = copy('l1', PUBLIC)
    load_policy(directory)
    load_policy(directory, camera_transforms=dict.fromkeys(('third_person', 'wrist'), 'none'))
    assert [record.getMessage() for record in caplog.records] == [
        'Taken transforms: mirror_horizontal (public name openvla-7b-oft-finetuned-libero).',
        'Taken transforms: none (as asked, against public name openvla-7b-oft-finetuned-libero).']


def test_the_nodes_loader_logs_to_its_own_logger_and_ours_have_no_guesses(copy, caplog):
    directory = copy('autoregressive')
    parameters = PolicyParameters(
        checkpoint=str(directory), methods=(), warmup_inferences=1, shadow_every=0)
    own = logging.Logger('node')
    kept = []
    own.addHandler(handler := logging.Handler(logging.WARNING))
    handler.emit = kept.append
    load_ready(parameters, own)
    said = [record.getMessage().split(':')[0] for record in kept]
    assert [line for line in said if line.startswith('Guessed')] == [
        'Guessed decoding', 'Guessed transforms']
    load_policy(SHIPPED)
    assert not caplog.records
