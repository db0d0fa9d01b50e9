"""SmolVLA: recorded inferences, laws of the network, and checkpoints as LeRobot saves them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from smol_models import CONFIG, inputs_of, random_network, shared_network

from vla_policy_node import families
from vla_policy_node.checks.assumed import all_assumptions
from vla_policy_node.checks.findings import PASS, SKIP, worst_by_stage
from vla_policy_node.checks.golden import compare_pack
from vla_policy_node.checks.report import check_checkpoint
from vla_policy_node.families import create_network, smolvla, smolvla_config
from vla_policy_node.nn import prefix_expert, siglip, vision
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.policy import load_policy
from vla_policy_node.policy.interface import InferenceRequest, Observation
from vla_policy_node.runtime import loading

PACK = Path(__file__).parents[1] / 'data' / 'smolvla_tiny'
CHECKPOINT = PACK / 'checkpoint'
ROOT = 'model.vlm_with_expert.'
STAGES = [
    'prompts', 'pictures', 'vision encoder', 'connector', 'visual tokens',
    'embeddings of the words', 'state', 'row of the state', 'prefix: rows that count',
    'prefix: blocks', 'prefix: positions', 'prefix: who sees whom', 'prefix: rows',
    'prefix: every layer', 'prefix: cached keys', 'prefix: cached values', 'prefix: last states',
    'times', 'time embedding', 'expert: positions', 'expert: rows of every step',
    'expert: every layer', 'flow: noisy actions', 'flow: velocity', 'normalised actions',
    'actions', 'training: actions', 'training: noisy actions', 'training: velocity to learn',
    'training: losses', 'training: loss', 'training: trained tensors', 'training: gradients',
    'guidance']
FAMILY = families.named('smolvla')


@pytest.fixture
def pack(tmp_path):
    return Path(shutil.copytree(PACK, tmp_path / 'pack'))


@pytest.fixture
def checkpoint(pack):
    return pack / 'checkpoint'


def stages(pack=PACK):
    return worst_by_stage(compare_pack(pack / 'checkpoint', pack))


def change_config(checkpoint, **entries):
    path = checkpoint / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def change_tensors(checkpoint, change):
    path = checkpoint / 'model.safetensors'
    tensors = load_file(path)
    save_file(change(tensors), path)


def load(checkpoint):
    return loading.load_model(
        checkpoint, families.read_model_config(checkpoint), 'cpu', 'float32')


@torch.inference_mode()
def run(network, inputs, padded=None, seen=None):
    """Actions, as `forward` makes them, of a prefix that may have rows to hide."""
    pixels, state, ids = inputs
    sequence = network.assemble(
        network.visual(pixels, None, ForwardPass()), state, ids, padded, seen)
    return network.decode(network.prefill(sequence, ForwardPass()), ForwardPass())


def test_every_stage_agrees_with_the_public_implementation():
    found = stages()
    assert [stage.stage for stage in found] == STAGES
    assert {stage.verdict for stage in found} == {PASS}
    # Far within: the tolerance is for other processors.
    assert max(stage.ratio for stage in found) < 0.3


@pytest.mark.parametrize(('owner', 'name', 'value', 'first'), [
    (smolvla_config, 'ROPE_THETA', 100_000.0, 'prefix: every layer'),
    (smolvla_config, 'EPS', 1e-6, 'prefix: every layer'),
    (smolvla, 'VISIBILITY', smolvla.Visibility(), 'prefix: who sees whom'),
    (prefix_expert.PrefixFlow, 'waves_of', lambda head, steps: torch.zeros(steps, 36),
     'expert: rows of every step'),
    (siglip, 'Mlp', lambda width, hidden, approximate: vision.Mlp(width, hidden),
     'vision encoder'),
    (siglip, 'shuffle_pixels', lambda x, factor: x.unflatten(1, (-1, factor**2)).flatten(2),
     'connector'),
    (prefix_expert, '_behind', lambda key, bias, actions: None, 'expert: rows of every step'),
])
def test_one_wrong_part_is_found_in_its_stage(monkeypatch, owner, name, value, first):
    monkeypatch.setattr(owner, name, value)
    assert next(stage.stage for stage in stages() if not stage.ok) == first


def test_public_files_have_the_tensors_of_the_network_of_public_size():
    document = json.loads((CHECKPOINT / 'config.json').read_text()) | {
        'vlm_model_name': 'HuggingFaceTB/SmolVLM2-500M-Video-Instruct', 'num_vlm_layers': 16,
        'resize_imgs_with_padding': [512, 512], 'max_state_dim': 32, 'max_action_dim': 32}
    config = FAMILY.config_of(document)
    with torch.device('meta'):
        network = create_network(config)
    ours = {FAMILY.locate(name, config)[1]: list(tensor.shape)
            for name, tensor in network.state_dict().items()}
    theirs = {}
    for name, _, shape, layers in json.loads((PACK / 'public_tensors.json').read_text()):
        for layer in layers or [0]:
            theirs[name.replace('#', str(layer))] = shape
    assert len(theirs) == 500
    assert theirs.pop(f'{ROOT}vlm.lm_head.weight') == [49280, 960]
    assert ours == theirs
    assert config.grid == (8, 8)


# --- laws of the network ---


@pytest.mark.parametrize('missing', [0, 1])
def test_a_masked_camera_is_an_absent_one(missing):
    network, (pixels, state, ids) = shared_network(), inputs_of(1)
    seen = torch.ones(1, 2, dtype=torch.bool)
    seen[0, missing] = False
    hidden = run(network, (pixels, state, ids), seen=seen)
    absent = run(network, (pixels[:, [1 - missing]], state, ids))
    torch.testing.assert_close(hidden, absent, rtol=0, atol=5e-5)
    assert (run(network, (pixels, state, ids)) - absent).abs().max() > 1e-3


def test_what_fills_up_a_prompt_changes_nothing():
    network, inputs = shared_network(), inputs_of(2, words=(5, 9, 20))
    filled = inputs[:2] + (torch.tensor([[5, 2, 2, 9, 20]]),)
    torch.testing.assert_close(
        run(network, filled, padded=True), run(network, inputs), rtol=0, atol=1e-5)
    assert (run(network, filled) - run(network, inputs)).abs().max() > 1e-3


def test_a_batch_answers_as_its_samples_do():
    network = shared_network()
    singles = [inputs_of(3, words=(5, 9, 20, 7)), inputs_of(4, words=(8, 6))]
    pixels, states = (torch.cat([one[part] for one in singles]) for part in (0, 1))
    batch = pixels, states, torch.tensor([[5, 9, 20, 7], [8, 6, 2, 2]])
    velocities = [
        network.velocity(
            network.prefill(sequence_of(network, inputs), ForwardPass()),
            torch.ones(len(inputs[0]), 6, 10), torch.full((len(inputs[0]),), 0.3))
        for inputs in (*singles, batch)]
    torch.testing.assert_close(velocities[2], torch.cat(velocities[:2]), rtol=0, atol=2e-5)


def sequence_of(network, inputs):
    pixels, state, ids = inputs
    return network.assemble(network.visual(pixels, None, ForwardPass()), state, ids)


def test_fewer_actions_are_the_first_of_more():
    """None sees those behind it, so a shorter chunk is as good as a longer one."""
    network, inputs = random_network(), inputs_of(5)
    whole = run(network, inputs)
    network.config = FAMILY.with_chunk_length(network.config, 4)
    torch.testing.assert_close(run(network, inputs), whole[:, :4], rtol=0, atol=1e-5)
    assert FAMILY.with_chunk_length(CONFIG, 40).chunk_length == CONFIG.chunk_length


@pytest.mark.parametrize(('settings', 'crossing'), [
    ({}, (False, True, False, True)),
    ({'self_attn_every_n_layers': 3}, (False, True, True, False)),
    ({'self_attn_every_n_layers': 0}, (True,) * 4),
    ({'attention_mode': 'self_attn'}, (False,) * 4),
])
def test_which_layers_cross_config_json_says(settings, crossing):
    network = random_network(**settings)
    assert network.config.crossing == crossing
    assert run(network, inputs_of(0)).shape == (1, 6, 7)
    for index, crosses in enumerate(crossing):
        weight = network.state_dict()[f'action_head.expert.layers.{index}.self_attn.k_proj.weight']
        assert weight.shape == (16, 16 if crosses else 24)


def test_gradients_reach_what_is_trained_and_the_state():
    network, inputs = random_network().requires_grad_(True), inputs_of(6)
    losses = network.flow_loss(
        sequence_of(network, inputs), torch.zeros(1, 6, 7), torch.ones(1, 6, 10),
        torch.tensor([0.5]))
    losses.mean().backward()
    without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    last = 'language_model.layers.3.'
    assert all(name.startswith(last) or name == 'language_model.norm.weight' for name in without)
    assert f'{last}self_attn.k_proj.weight' not in without


# --- a checkpoint as a policy ---


@pytest.fixture(scope='module')
def observation():
    case = np.load(PACK / 'case0.npz')
    return Observation(
        {'top': case['raw_image__top'][0], 'wrist': case['raw_image__wrist'][0]},
        case['raw_state'][0].astype(float), 'pick up the red cube on the table')


@pytest.fixture
def recorded_noise(monkeypatch):
    """Noise of the recording in place of our own."""
    noise = torch.from_numpy(np.load(PACK / 'case0.npz')['noise'])
    monkeypatch.setattr(smolvla, 'initial_noise', lambda like, shape: noise[:, : shape[1]])


def error_of(policy, observation):
    case = np.load(PACK / 'case0.npz')
    chunk = policy.infer(InferenceRequest(observation))
    return np.abs(chunk.actions - case['actions'][0, : len(chunk.actions)]).max()


@pytest.mark.parametrize('options', [
    {}, {'optimisation': 'fused'}, {'optimisation': 'graphs'}, {'chunk_length': 3},
    {'methods': ('random_tokens',), 'method_settings': {'random_tokens': {'count': 8}}}])
def test_pictures_state_and_words_become_the_recorded_actions(
        observation, recorded_noise, options):
    assert error_of(load_policy(CHECKPOINT, **options), observation) < 2e-4


def test_bfloat16_stays_as_close_as_the_public_code(observation, recorded_noise):
    """0.046 at most in the public layout of dtypes, at actions of 1.55 (the pack's README)."""
    assert 1e-4 < error_of(load_policy(CHECKPOINT, dtype='bfloat16'), observation) < 0.15


def test_it_says_what_it_is(observation):
    policy = load_policy(CHECKPOINT)
    description = policy.description
    assert description.architecture == (
        'SmolVLA: SigLIP 3x32, SmolLM 4x48, flow expert 4x36, 10 steps')
    assert description.spec.cameras == ('top', 'wrist')
    assert [len(part) for part in (description.spec.state, description.spec.actions)] == [6, 7]
    assert (description.chunk_length, description.visual_tokens) == (10, 8)
    chunk = policy.infer(InferenceRequest(observation))
    assert set(chunk.stage_ms) == {
        'preprocess', 'upload', 'vision', 'select', 'language_model', 'head'}
    np.testing.assert_array_equal(
        policy.infer(InferenceRequest(observation)).actions, chunk.actions)
    assert (chunk.layers_run, chunk.layers_total, chunk.tokens_kept) == (4, 4, 8)


# --- loaders ---


def whole_backbone(tensors):
    """As a fine-tune of everything saves it: all layers, and the vocabulary head."""
    text = f'{ROOT}vlm.model.text_model.'
    more = {name.replace('layers.3.', f'layers.{index}.'): torch.full_like(tensor, torch.nan)
            for name, tensor in tensors.items() if name.startswith(f'{text}layers.3.')
            for index in (4, 5)}
    head = torch.full_like(tensors[f'{text}embed_tokens.weight'], torch.nan)
    return {**tensors, **more, f'{ROOT}vlm.lm_head.weight': head}


def buffers(tensors):
    """As LeRobot saved it before normalising was a processor."""
    return {**tensors, **{
        f'{part}.buffer_{name}.{key}': torch.full((size,), value)
        for part, name, size in (
            ('normalize_inputs', 'observation_state', 6), ('normalize_targets', 'action', 7),
            ('unnormalize_outputs', 'action', 7))
        for key, value in (('mean', 0.0), ('std', 2.0))}}


@pytest.mark.parametrize('change', [
    whole_backbone, buffers,
    lambda tensors: {f'_orig_mod.{name}': tensor for name, tensor in tensors.items()},
    lambda tensors: {name.replace('model.', 'model._orig_mod.', 1): tensor
                     for name, tensor in tensors.items()},
])
def test_weights_are_found_in_every_layout(checkpoint, change):
    plain = load(checkpoint).state_dict()
    change_tensors(checkpoint, change)
    found = load(checkpoint).state_dict()
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())


def test_the_mixed_dtypes_of_the_public_file_are_read(checkpoint, observation, recorded_noise):
    single = ('state_proj', 'action_', 'layers.1.self_attn.k', 'layers.1.self_attn.v',
              'layers.3.self_attn.k', 'layers.3.self_attn.v')
    change_tensors(checkpoint, lambda tensors: {
        name: tensor if any(part in name for part in single) and 'text_model' not in name
        else tensor.bfloat16() for name, tensor in tensors.items()})
    for dtype in ('float32', 'bfloat16'):
        assert error_of(load_policy(checkpoint, dtype=dtype), observation) < 0.15


def test_older_weights_bring_their_statistics(checkpoint, observation):
    change_tensors(checkpoint, buffers)
    for path in checkpoint.glob('policy_*'):
        path.unlink()
    chunk = load_policy(checkpoint).infer(InferenceRequest(observation))
    np.testing.assert_allclose(chunk.actions, 2 * chunk.normalised)


def without(part):
    return lambda tensors: {name: x for name, x in tensors.items() if part not in name}


@pytest.mark.parametrize(('change', 'entries', 'sentence'), [
    (without('lm_expert.layers.3.'), {}, r'an expert of 3 layers, and 4 of the language model'),
    (None, {'num_vlm_layers': 3}, r'an expert of 4 layers, and 3 of the language model'),
    (without('text_model.layers.3.'), {}, r'lacks 9 of \d+ tensors'),
    (without('text_model.layers.3.'), {'num_vlm_layers': 0}, r'4 layers, and 3 of the language'),
    (without('connector'), {}, r'says that it is a SmolVLA and has no tensor .*connector'),
    (None, {'num_expert_layers': 2}, r'2 layers of the expert beside 4'),
    (None, {'self_attn_every_n_layers': 4}, r'has shape \[16, \d+\]'),
    (None, {'attention_mode': 'other'}, r"attention_mode 'other'"),
    (None, {'resize_imgs_with_padding': [96, 64]}, r'resize_imgs_with_padding .*\[64, 64\]'),
    (None, {'max_state_dim': 5}, r'max_state_dim 5; it must be at least 6'),
    (None, {'input_features': {'observation.state': {'type': 'STATE', 'shape': [6]}}},
     r'input_features .*cameras'),
    (lambda tensors: {name: x[..., :0] if 'patch_embedding.weight' in name else x
                      for name, x in tensors.items()}, {}, r'as no SmolVLA has'),
])
def test_what_makes_no_policy_is_refused_with_a_sentence(checkpoint, change, entries, sentence):
    if change:
        change_tensors(checkpoint, change)
    change_config(checkpoint, **entries)
    with pytest.raises(ValueError, match=sentence) as refusal:
        load(checkpoint)
    assert str(refusal.value).endswith('.')


@pytest.mark.parametrize('name', ['somebody/else', '../other', '/etc'])
def test_a_backbone_that_nothing_tells_of_is_refused_with_a_sentence(pack, checkpoint, name):
    (pack / 'vlm_backbone').rename(pack / 'other')
    change_config(checkpoint, vlm_model_name=name)
    with pytest.raises(ValueError, match=f"the backbone '{name}', and nothing here tells"):
        load(checkpoint)


def test_sizes_of_an_unknown_backbone_come_from_a_folder_inside(pack, checkpoint):
    change_config(checkpoint, vlm_model_name='/home/somebody/backbone')
    shutil.move(pack / 'vlm_backbone', checkpoint / 'vlm_backbone')
    assert load(checkpoint).config.language_model.heads == 6


def test_without_a_tokenizer_it_says_which_one_to_take(pack, checkpoint):
    (pack / 'vlm_backbone' / 'tokenizer.json').unlink()
    with pytest.raises(ValueError, match=r'hf download HuggingFaceTB/SmolVLM2-500M'):
        load_policy(checkpoint)


def test_words_around_pictures_leave_methods_out(pack, checkpoint, observation):
    change_config(checkpoint, add_image_special_tokens=True)
    policy = load_policy(checkpoint, optimisation='fused')
    assert policy.infer(InferenceRequest(observation)).actions.shape == (10, 7)
    with pytest.raises(ValueError, match='runs without acceleration methods'):
        load_policy(checkpoint, methods=('lightvla',))
    (pack / 'vlm_backbone' / 'tokenizer.json').unlink()
    with pytest.raises(ValueError, match='words around pictures'):
        load_policy(checkpoint)


def test_cameras_that_the_robot_lacks_are_left_out_by_config_json(checkpoint, recorded_noise):
    """As LeRobot leaves out what an observation lacks."""
    change_config(checkpoint, cameras=['top'])
    case, variant = np.load(PACK / 'case0.npz'), np.load(
        PACK / 'variant_missing_camera_dropped.npz')
    observation = Observation({'top': case['raw_image__top'][0]},
                              case['raw_state'][0].astype(float),
                              'pick up the red cube on the table')
    chunk = load_policy(checkpoint).infer(InferenceRequest(observation))
    np.testing.assert_allclose(chunk.actions, variant['actions'][0], rtol=0, atol=2e-4)


@pytest.mark.parametrize('optimisation', ['none', 'fused'])
def test_a_camera_without_a_picture_is_left_away(recorded_noise, observation, optimisation):
    variant = np.load(PACK / 'variant_missing_camera_dropped.npz')
    policy = load_policy(CHECKPOINT, optimisation=optimisation)
    policy.infer(InferenceRequest(observation))
    chunk = policy.infer(InferenceRequest(
        replace(observation, images={'top': observation.images['top']})))
    np.testing.assert_allclose(chunk.actions, variant['actions'][0], rtol=0, atol=2e-4)
    assert [selection.camera for selection in chunk.selections] == ['top']


def test_cameras_that_never_are_do_not_count(checkpoint):
    document = json.loads((checkpoint / 'config.json').read_text())
    features = {**document['input_features'], 'observation.images.empty_camera_0': {
        'type': 'VISUAL', 'shape': [3, 480, 640]}}
    change_config(checkpoint, input_features=features)
    assert families.read_model_config(checkpoint).spec.cameras == ('top', 'wrist')


def test_recordings_that_are_not_of_it_are_told_apart(pack):
    for path in pack.glob('*.npz'):
        path.unlink()
    np.savez(pack / 'strange.npz', x=np.zeros(3))
    found = {stage.stage: stage for stage in stages(pack)}
    assert found['recording'].text.startswith('is of no inference of SmolVLA')
    assert found['other recordings'].verdict == SKIP


def test_vla_check_passes_it_also_with_layers_that_do_not_run(checkpoint):
    change_tensors(checkpoint, lambda tensors: buffers(whole_backbone(tensors)))
    findings = {finding.name: finding for finding in check_checkpoint(checkpoint)}
    assert {name for name, found in findings.items() if found.verdict == 'FAIL'} == set()
    assert findings['images'].verdict == PASS


def test_what_it_takes_for_granted_comes_from_lerobots_files():
    said = {one.name: one for one in all_assumptions(CHECKPOINT)}
    assert [name for name, one in said.items() if one.guessed] == ['transforms']
    assert said['ranges'].value == 'state by MEAN_STD, actions by MEAN_STD'
    assert said['statistics'].source == 'the only one in policy_preprocessor.json'
    assert said['decoding'].source == 'config.json: type'


def test_words_around_a_masked_picture_stay():
    """As LeRobot masks the picture alone."""
    network, (pixels, state, ids) = random_network(), inputs_of(7)
    network.config = replace(network.config, frame=((11, 12), (11,)))
    visual = network.visual(pixels, None, ForwardPass())
    sequence = network.assemble(visual, state, ids, seen=torch.tensor([[True, False]]))
    hidden = sequence.key_bias[0].isneginf()
    assert sequence.states.shape[1] == 2 * (2 + 16 + 1) + 4 + 1
    assert hidden.nonzero().flatten().tolist() == [*range(19 + 2, 19 + 2 + 16)]
    unscaled = network.language_model.embed_tokens(torch.tensor([11, 12]))
    assert torch.equal(sequence.states[0, 19:21], unscaled)
    assert sequence.positions[0, -1] == 2 * 19 - 16 + 4
