"""Checkpoints of pi0 and pi0.5: every layout of public files, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pi_models import (
    CHUNK,
    EMBED_TOKENS,
    KINDS,
    LAYOUTS,
    NAMES,
    inputs_of,
    openpi_document,
    shared_network,
    tensors_of,
    write_checkpoint,
    write_policy,
    write_statistics,
    write_tokenizer,
    write_weights,
)
from safetensors.torch import load_file, save_file
from tiny_model import torchs_flops

from vla_policy_node import acceleration, families
from vla_policy_node.bench import random_policy
from vla_policy_node.checks.findings import FAIL
from vla_policy_node.checks.report import check_checkpoint
from vla_policy_node.families import read_model_config
from vla_policy_node.nn.flops import LayerRows
from vla_policy_node.policy import load_policy
from vla_policy_node.policy.assumptions import assumptions
from vla_policy_node.policy.interface import InferenceRequest, Observation
from vla_policy_node.runtime.loading import load_model

PI05 = Path(__file__).parents[1] / 'data' / 'pi05_tiny'


@pytest.fixture(scope='module')
def policies(tmp_path_factory):
    """A whole checkpoint of each kind."""
    folder = tmp_path_factory.mktemp('policies')
    return {kind: write_policy(folder / kind, kind) for kind in KINDS}


def change_tensors(directory, change):
    path = directory / 'model.safetensors'
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def observe(cameras=('image', 'wrist_image'), state=8, seed=0):
    random = np.random.default_rng(seed)
    return InferenceRequest(Observation(
        {name: random.integers(0, 256, (48, 64, 3), np.uint8) for name in cameras},
        random.uniform(-0.5, 0.5, state), 'pick up the cup'))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_layout_of_names_holds_the_same_policy(tmp_path, kind, layout):
    directory = write_checkpoint(tmp_path, kind, layout)
    config = read_model_config(directory)
    network = load_model(directory, config, 'cpu', 'float32')
    expected = shared_network(kind)
    coarse = layout == 'bfloat16'
    for name, weight in network.state_dict().items():
        wanted = expected.state_dict()[name]
        assert torch.equal(weight, wanted.bfloat16().float() if coarse else wanted), name
    with torch.inference_mode():
        assert torch.allclose(
            network(inputs_of(0)), expected(inputs_of(0)), atol=0.2 if coarse else 1e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_sizes_come_from_the_weights(tmp_path, kind):
    config = read_model_config(write_checkpoint(tmp_path, kind))
    expected = shared_network(kind).config
    assert config.names == expected.names
    assert config == expected


def test_openpis_files_are_recognised_by_their_weights(tmp_path):
    for kind in KINDS:
        directory = write_policy(tmp_path / kind, kind)
        (directory / 'config.json').write_text(json.dumps(openpi_document(horizon=9)))
        config = read_model_config(directory)
        assert config.family.name == kind
        assert config.chunk_length == 9
        assert config.accumulated_time
        assert config.padding == 'openpi'
        assert config.spec.cameras == ('base_0_rgb', 'left_wrist_0_rgb', 'right_wrist_0_rgb')
        chunk = load_policy(directory, methods=()).infer(
            observe(('base_0_rgb', 'left_wrist_0_rgb')))
        assert chunk.actions.shape == (9, 7)


def test_openpis_statistics_say_how_many_numbers_a_robot_has(tmp_path):
    directory = write_checkpoint(tmp_path, 'pi0')
    (directory / 'config.json').write_text(json.dumps(openpi_document()))
    write_statistics(directory, states=14, actions=14, robots=('aloha',))
    spec = read_model_config(directory).spec
    assert (len(spec.state), len(spec.actions)) == (14, 14)


def test_one_robot_of_several_has_to_be_named(policies, tmp_path):
    directory = Path(shutil.copytree(policies['pi0'], tmp_path / 'pi0'))
    shutil.rmtree(directory / 'assets')
    write_statistics(directory, robots=('franka', 'ur5e'))
    with pytest.raises(ValueError, match=r'franka.*ur5e.*statistics_key'):
        load_policy(directory, methods=())
    franka, ur5e = (load_policy(directory, methods=(), statistics_key=key).infer(observe())
                    for key in ('franka', 'ur5e'))
    assert not np.array_equal(franka.actions, ur5e.actions)


def test_conventions_follow_the_files_of_each_generation(tmp_path):
    older = {'resize_imgs_with_padding': [56, 56], 'image_resolution': None, 'num_steps': 4}
    config = read_model_config(write_checkpoint(tmp_path / 'old', 'pi0', 'older', **older))
    assert (config.padding, config.accumulated_time, config.denoising_steps) == (
        'smolvla', True, 4)
    config = read_model_config(write_checkpoint(tmp_path / 'new', 'pi0', 'untied'))
    assert (config.padding, config.accumulated_time, config.prompt) == (
        'lerobot', False, 'lerobot')


def test_lerobot_0_4_filled_up_the_state_in_the_prompt(tmp_path):
    shutil.copytree(PI05 / 'checkpoint', tmp_path, dirs_exist_ok=True)
    assert read_model_config(tmp_path).prompt == 'state'
    path = tmp_path / 'policy_preprocessor.json'
    document = json.loads(path.read_text())
    document['steps'] = [step for step in document['steps']
                         if step['registry_name'] != 'relative_actions_processor']
    path.write_text(json.dumps(document))
    assert read_model_config(tmp_path).prompt == 'padded state'
    change_tensors(tmp_path, lambda tensors: tensors.update({
        EMBED_TOKENS: tensors[NAMES['words']].clone()}))
    assert read_model_config(tmp_path).prompt == 'state'  # of 0.5.0


def test_pi05_without_state_in_its_prompt_takes_none(tmp_path):
    directory = write_policy(tmp_path, 'pi05', discrete_state_input=False)
    policy = load_policy(directory, methods=())
    assert policy.description.spec.state == ()
    one, other = (policy.infer(observe(state=size)) for size in (0, 8))
    assert one.actions.shape == other.actions.shape == (CHUNK, 7)


def test_empty_cameras_are_none_and_others_may_be_named(policies, tmp_path):
    features = {f'observation.images.{name}': {'type': 'VISUAL', 'shape': [3, 8, 8]}
                for name in ('image', 'image2', 'empty_camera_0')}
    directory = write_checkpoint(tmp_path, 'pi05', input_features=features)
    assert read_model_config(directory).spec.cameras == ('image', 'image2')
    directory = write_checkpoint(tmp_path, 'pi05', cameras=['front'])
    assert read_model_config(directory).spec.cameras == ('front',)


@pytest.mark.parametrize('kind', KINDS)
def test_a_policy_answers_with_and_without_a_camera(policies, kind):
    policy = load_policy(policies[kind], methods=())
    chunk = policy.infer(observe())
    assert chunk.actions.shape == (CHUNK, 7)
    assert np.isfinite(chunk.actions).all()
    assert (chunk.tokens_kept, chunk.tokens_total) == (32, 32)
    one = policy.infer(observe(('wrist_image',)))
    assert not np.array_equal(one.actions, chunk.actions)
    with pytest.raises(ValueError, match=r'There is no image.*\.$'):
        policy.infer(observe(()))


@pytest.mark.parametrize('kind', KINDS)
def test_vla_check_finds_nothing_wrong(policies, kind):
    findings = [*check_checkpoint(policies[kind])]
    assert not [str(finding) for finding in findings if finding.verdict == FAIL]


def test_what_is_taken_for_granted_comes_from_files(policies):
    config = read_model_config(policies['pi05'])
    found = {one.name: one for one in assumptions(policies['pi05'], config)}
    assert [name for name, one in found.items() if one.guessed] == ['transforms']
    assert found['ranges'].value == 'state by MEAN_STD, actions by MEAN_STD'
    assert found['words'].value == 'as state'
    assert found['cameras'].source == 'config.json: input_features'


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('method', acceleration.available())
def test_every_method_runs_on_it_or_says_in_a_sentence_why_not(policies, kind, method):
    try:
        policy = load_policy(policies[kind], methods=[method])
    except ValueError as error:
        assert str(error).endswith('.')
        return
    chunk = policy.infer(observe())
    chunk = policy.infer(InferenceRequest.after(observe(seed=1).observation, chunk))
    assert chunk.actions.shape == (CHUNK, 7)
    assert np.isfinite(chunk.actions).all()


@pytest.fixture(scope='module')
def three_cameras(tmp_path_factory):
    """A checkpoint with weights of all methods, from a seed."""
    directory = write_policy(tmp_path_factory.mktemp('three'), 'pi0', cameras=['a', 'b', 'c'])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for method in map(acceleration.named, acceleration.available()):
            method.save_untrained(directory, read_model_config(directory))
    return directory


@pytest.mark.parametrize('method', [None, *sorted({*acceleration.available()} - {'deer'})])
def test_other_cameras_than_in_the_last_step_are_a_new_beginning(three_cameras, method):
    """What a method remembers of a token's place is of another camera then."""
    chosen = [method] if method else []
    policy, fresh = (load_policy(three_cameras, methods=chosen) for _ in range(2))
    for seed, cameras in enumerate(('abc', 'abc', 'ac', 'ac', 'b')):
        chunk = policy.infer(observe(cameras, seed=seed))
        assert chunk.tokens_total == 16 * len(cameras)
        assert [selection.camera for selection in chunk.selections] == [*cameras]
    wanted = fresh.infer(observe('b', seed=4))
    np.testing.assert_array_equal(chunk.actions, wanted.actions)
    assert (chunk.flops, chunk.tokens_kept) == (wanted.flops, wanted.tokens_kept)


def test_what_an_answer_costs_counts_the_cameras_that_there_are(three_cameras):
    policy = load_policy(three_cameras, methods=())
    counted = torchs_flops(lambda: policy.infer(observe('ac')))
    assert policy.infer(observe('ac')).flops == counted


@pytest.mark.parametrize('kind', KINDS)
def test_fused_it_answers_the_same_up_to_rounding(policies, kind):
    plain, fused = (load_policy(policies[kind], methods=(), optimisation=way).infer(observe())
                    for way in ('none', 'fused'))
    np.testing.assert_allclose(fused.normalised, plain.normalised, atol=1e-5)
    assert not np.array_equal(fused.normalised, plain.normalised)


@pytest.mark.parametrize('optimisation', ['graphs', 'compiled'])
def test_fixed_shapes_are_refused(policies, optimisation):
    with pytest.raises(ValueError, match='Fixed shapes are not for the pi0 head'):
        load_policy(policies['pi0'], methods=(), optimisation=optimisation)


def without_words(tensors):
    tensors.pop(NAMES['words'])


def without_a_layer(tensors):
    tensors.pop(next(name for name in tensors if 'gemma_expert.model.layers.1.mlp' in name))


def with_another_expert(tensors):
    for name in [*tensors]:
        if 'gemma_expert.model.layers.3.' in name:
            del tensors[name]


def with_a_huge_table(tensors):
    tensors[NAMES['words']] = torch.zeros(2_000_000, 1)


def with_huge_patches(tensors):
    tensors[f'{NAMES["vision"]}embeddings.patch_embedding.weight'] = torch.zeros(24, 1, 600, 1)


@pytest.mark.parametrize(('change', 'sentence'), [
    (with_huge_patches, 'pictures of 2,400 px, and none takes more than 2048'),
    (without_words, 'has no table of words.*blind to language'),
    (without_a_layer, r'lacks 1 of \d+ tensors'),
    (with_another_expert, 'other layers or heads'),
    (with_a_huge_table, 'no vocabulary has more than'),
    (lambda tensors: tensors.clear() or tensors.update(x=torch.zeros(1)),
     'are not of pi0 or pi0.5, or in a layout that is not known'),
])
def test_weights_that_make_no_policy_are_refused_with_a_sentence(tmp_path, change, sentence):
    directory = write_checkpoint(tmp_path, 'pi0')
    change_tensors(directory, change)
    with pytest.raises(ValueError, match=rf'{sentence}.*\.$'):
        load_model(directory, read_model_config(directory), 'cpu', 'float32')


@pytest.mark.parametrize(('kind', 'changes', 'sentence'), [
    ('pi0', {'type': 'pi05'}, 'has the weights of pi0, and config.json is of pi0.5'),
    ('pi05', {'type': 'pi0'}, 'has the weights of pi0.5, and config.json is of pi0'),
    ('pi0', {'chunk_size': 0}, 'chunk_size 0; it must be a whole number from 1 to 1000'),
    ('pi0', {'num_inference_steps': 10**9}, 'num_inference_steps'),
    ('pi0', {'image_resolution': [224, 112]}, 'two equal numbers'),
    ('pi0', {'actions': 40}, '40 numbers under actions, and the weights have room for 32'),
    ('pi0', {'output_features': {'action': {'shape': [7, 7]}}}, 'a list of one number'),
    ('pi0', {'min_period': -1}, 'min_period'),
    ('pi0', {'prompt': 'loud'}, 'prompt'),
])
def test_a_config_that_does_not_fit_is_refused_with_a_sentence(
    policies, tmp_path, kind, changes, sentence
):
    path = tmp_path / 'config.json'
    for file in policies[kind].iterdir():
        if file.is_file():
            (tmp_path / file.name).symlink_to(file)
    document = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps({**document, **changes}))
    with pytest.raises(ValueError, match=rf'{sentence}.*\.$'):
        read_model_config(tmp_path)


def test_a_shard_that_is_not_there_is_named(tmp_path):
    write_checkpoint(tmp_path, 'pi0')
    (tmp_path / 'model.safetensors').rename(tmp_path / 'model-00001-of-00002.safetensors')
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(
        {'weight_map': {'a': 'model-00001-of-00002.safetensors',
                        'b': 'model-00002-of-00002.safetensors'}}))
    with pytest.raises(ValueError, match=r'lacks model-00002-of-00002\.safetensors, which'):
        read_model_config(tmp_path)


def test_heads_of_an_unknown_vision_encoder_are_not_guessed(tmp_path):
    directory = write_checkpoint(tmp_path, 'pi0')
    (directory / 'tiny_sizes.json').unlink()
    with pytest.raises(ValueError, match=r'nothing says how many heads.*\.$'):
        read_model_config(directory)


def test_the_experts_table_of_words_is_never_read(tmp_path):
    directory = write_checkpoint(tmp_path, 'pi0')
    name = 'paligemma_with_expert.gemma_expert.lm_head.weight'
    change_tensors(directory, lambda tensors: tensors.update({name: torch.zeros(1, 2, 3)}))
    load_model(directory, read_model_config(directory), 'cpu', 'float32')


def test_public_sizes_are_those_of_the_published_files():
    """Bytes of `lerobot/pi0_base` and `lerobot/pi05_base`, without the expert's table."""
    for kind, count in (('pi0', 3_501_372_176), ('pi05', 3_616_757_520)):
        config = families.config_of({'type': kind, 'head': kind})
        with torch.device('meta'):
            network = families.create_network(config)
        table = 257152 * 1024
        assert sum(weight.numel() for weight in network.parameters()) + table == count
        assert config.least_weights < count


def test_flops_of_public_sizes_are_those_of_the_specification():
    """2 views, 20 words, 50 actions, 10 steps: 440 + 2032 + 365 GFLOP (2.84 in all)."""
    config = families.config_of({
        'type': 'pi0', 'head': 'pi0', 'cameras': ['base_0_rgb', 'left_wrist_0_rgb']})
    rows = 2 * 256 + 20
    flops = families.count_flops(
        config, [LayerRows(rows, rows, rows)] * 17 + [LayerRows(0, rows, rows)])
    giga = {stage: round(count / 1e9) for stage, count in flops.items()}
    assert giga == {'vision': 440, 'language_model': 2032, 'head': giga['head']}
    assert giga['head'] == pytest.approx(365, abs=10)


@pytest.mark.parametrize(('kind', 'views'), [('pi0', 2), ('pi05', 3)])
def test_the_bench_makes_a_policy_of_public_size_without_a_download(tmp_path, kind, views):
    """Structure only: nothing has memory here, and so nothing runs."""
    def make(directory, config, *_, **__):
        with torch.device('meta'):
            return families.create_network(config)

    directory = random_policy.write_files(tmp_path, random_policy.document_of(kind, 'public'))
    policy = load_policy(directory, methods=(), load_model=make)
    description = policy.description
    assert description.visual_tokens == 256 * views
    assert description.parameters == {'pi0': 3_501_372_176, 'pi05': 3_616_757_520}[kind] - (
        257152 * 1024)
    ids = policy.inputs.encode_prompt('pick up the black bowl')
    assert ids[0] == 2
    assert len(ids) < 200


@pytest.mark.parametrize(('family', 'size', 'sentence'), [
    ('pi1', 'public', "one of pi0, pi05, or left out for OpenVLA-OFT, not 'pi1'"),
    ('pi0', '7b', "size must be one of public, not '7b'")])
def test_the_bench_knows_which_sizes_there_are(family, size, sentence):
    with pytest.raises(ValueError, match=sentence):
        random_policy.document_of(family, size)


def test_the_packs_tokens_are_those_of_its_prompts(tmp_path):
    """With a tokenizer file that does what the recording's toy did."""
    shutil.copytree(PI05 / 'checkpoint', tmp_path, dirs_exist_ok=True)
    write_tokenizer(tmp_path)
    recorded = np.load(PI05 / 'end_to_end.npz')
    tasks = json.loads((PI05 / 'prompts.json').read_text())
    policy = load_policy(tmp_path, methods=())
    for index, prompt in enumerate(tasks):
        key = f't{index}_'
        images = {name.removeprefix(f'{key}image_u8__'): recorded[name] for name in recorded
                  if name.startswith(f'{key}image_u8__')}
        inputs = policy.inputs.encode(images, recorded[f'{key}state'], prompt['task'])
        ids = recorded[f'{key}lang_tokens'][recorded[f'{key}lang_masks']]
        assert inputs.prompt_ids[0].tolist() == ids.tolist()
        np.testing.assert_allclose(inputs.proprio, recorded[f'{key}state_norm'], atol=1e-6)


def test_weights_written_here_are_read_again(tmp_path):
    write_checkpoint(tmp_path, 'pi05')
    write_weights(tmp_path, shared_network('pi05'), 'untied')
    tensors = tensors_of(shared_network('pi05'))
    network = load_model(tmp_path, read_model_config(tmp_path), 'cpu', 'float32')
    assert torch.equal(network.language_model.embed_tokens.weight, tensors[NAMES['words']])
