"""Every layout of public checkpoints is recognised from its files, and runs or says why not."""

import hashlib
import json
import shutil
import subprocess
import sys

import checkpoint_variants as variants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vla_policy_node.checkpoints.fingerprint import fingerprint
from vla_policy_node.checkpoints.published import published_action_rows
from vla_policy_node.families import config_of, read_model_config
from vla_policy_node.nn.ddim import Ddim
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.heads import VocabularyHead
from vla_policy_node.nn.sequence import TokenSequence, lay_out
from vla_policy_node.policy import load_policy
from vla_policy_node.policy.interface import END_EFFECTOR_STATE, InferenceRequest, Observation
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.runtime import saving

HEADS = ('l1', 'discrete', 'diffusion', 'autoregressive')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """Checkpoint directory of each head, not to be changed."""
    root = tmp_path_factory.mktemp('layouts')
    return {head: variants.make(root / head, head) for head in HEADS}


@pytest.fixture
def l1(made, tmp_path):
    return variants.copy(made['l1'], tmp_path / 'l1')


def request(seed=0):
    random = np.random.default_rng(seed)
    images = {name: random.integers(0, 256, (56, 56, 3), np.uint8)
              for name in ('third_person', 'wrist')}
    proprio = np.array([-0.1, 0.0, 0.9, 2.6, 0.0, 0.0, 0.02, -0.02])
    return InferenceRequest(Observation(images, proprio, 'pick up the bowl'))


def same_weights(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name


@pytest.mark.parametrize('head', HEADS)
def test_the_head_is_recognised_from_the_files_and_runs(made, head):
    policy = LocalPolicy.load(made[head], methods=())
    assert f'{head[:8]}' in policy.description.architecture.lower()
    chunk = policy.infer(request())
    assert chunk.actions.shape == (1 if head == 'autoregressive' else 8, 7)
    assert chunk.tokens_total == (16 if head == 'autoregressive' else 32)
    np.testing.assert_array_equal(policy.infer(request()).actions, chunk.actions)
    assert np.abs(policy.infer(request(1)).actions - chunk.actions).max() > 1e-4
    assert set(chunk.stage_ms) == {
        'preprocess', 'upload', 'vision', 'select', 'language_model', 'head'}
    assert chunk.flops > 0


def test_a_head_without_acceleration_refuses_it(made):
    with pytest.raises(ValueError, match='diffusion head, which runs without acceleration'):
        LocalPolicy.load(made['diffusion'], methods=('lightvla',))


def test_without_a_word_of_methods_there_are_none_and_rows_are_those_of_oft(made):
    described = load_policy(made['l1']).description
    assert (described.methods, described.action_rows) == ((), 'oft')


def test_lightvla_prunes_a_discrete_policy_too(made):
    chunk = LocalPolicy.load(made['discrete'], methods=['lightvla']).infer(request())
    assert chunk.tokens_kept < chunk.tokens_total


def test_shards_and_wrappers_of_training_make_no_difference(made, l1):
    variants.shard(l1, 3, prefix='module.')
    for part in ('action_head', 'proprio_projector'):
        variants.to_pt(l1, part)
    same_weights(variants.load(made['l1']), variants.load(l1))


def test_the_older_format_of_torch_is_read_as_well(made, l1):
    variants.to_pt(l1, 'action_head', _use_new_zipfile_serialization=False)
    same_weights(variants.load(made['l1']), variants.load(l1))


def test_a_shard_that_is_not_there_is_named(l1):
    variants.shard(l1, 3)
    (l1 / 'model-00002-of-00003.safetensors').unlink()
    with pytest.raises(ValueError, match=r'lacks .* in model-00002-of-00003\.safetensors'):
        variants.load(l1)


def test_a_part_that_holds_no_tensors_is_refused(l1):
    (path,) = l1.glob('action_head--*')
    path.unlink()
    torch.save({'step': 3}, l1 / 'action_head--7_checkpoint.pt')
    with pytest.raises(ValueError, match='holds no table of tensors'):
        variants.load(l1)


@pytest.mark.parametrize('name', ['adapter_config.json', 'lora_adapter/adapter_config.json'])
def test_an_adapter_without_its_model_is_refused_with_a_sentence(l1, name):
    for path in l1.glob('model*'):
        path.unlink()
    (l1 / name).parent.mkdir(exist_ok=True)
    (l1 / name).write_text('{}')
    with pytest.raises(ValueError, match=r'LoRA adapter without the model.*merge it'):
        LocalPolicy.load(l1)


def test_a_merged_checkpoint_may_keep_its_adapter(made, l1):
    (l1 / 'lora_adapter').mkdir()
    (l1 / 'lora_adapter' / 'adapter_config.json').write_text('{"lora_alpha": 16}')
    same_weights(variants.load(made['l1']), variants.load(l1))


def test_a_model_may_be_saved_over_the_files_it_is_a_view_of(made, l1):
    model = variants.load(l1)
    saving.save_model(l1, model, step=7)
    same_weights(variants.load(made['l1']), model)
    same_weights(variants.load(made['l1']), variants.load(l1))


def test_weights_in_another_format_are_named(l1):
    (l1 / 'model.safetensors').rename(l1 / 'pytorch_model.bin')
    with pytest.raises(ValueError, match=r'only pytorch_model\.bin, which is not read'):
        variants.load(l1)


@pytest.mark.parametrize(('head', 'part', 'sentence'), [
    ('l1', 'proprio_projector', 'no proprio_projector.*"proprio": false'),
    ('diffusion', 'action_head', 'diffusion policy needs both'),
])
def test_a_part_that_is_missing_is_not_taken_for_another_kind(
        made, tmp_path, head, part, sentence):
    directory = variants.copy(made[head], tmp_path / 'copy')
    for path in directory.glob(f'{part}--*'):
        path.unlink()
    with pytest.raises(ValueError, match=sentence):
        read_model_config(directory)


def test_an_l1_policy_that_lost_its_head_does_not_act_as_a_discrete_one(l1):
    """Its files look like those of a discrete policy; its vocabulary head knows no actions."""
    for path in l1.glob('action_head--*'):
        path.unlink()
    tensors = load_file(l1 / 'model.safetensors')
    words = torch.randn(variants.small.VOCABULARY, 32)
    words[512 - 64 : 512] = 0
    save_file({**tensors, 'language_model.lm_head.weight': words}, l1 / 'model.safetensors')
    policy = LocalPolicy.load(l1, methods=())
    assert str(policy.taken[0]).startswith('Guessed decoding: OpenVLA-OFT, discrete head (')
    assert 'whose action_head--* is missing has the same files' in str(policy.taken[0])
    with pytest.raises(ValueError, match=r'words instead of action tokens.*action_head'):
        policy.infer(request())


@pytest.mark.parametrize('name', ['action_head.pt', 'action_head--latest.pt'])
def test_a_part_under_another_name_is_not_taken_for_missing(l1, name):
    variants.to_pt(l1, 'action_head').rename(l1 / name)
    with pytest.raises(ValueError, match=f'has {name}, and this part .* rename it'):
        read_model_config(l1)


def test_names_of_files_cannot_write_to_a_terminal(l1):
    for part in ('action_head', 'proprio_projector'):
        (l1 / f'{part}--\x1b[31m_checkpoint.pt').touch()
    with pytest.raises(ValueError) as caught:
        LocalPolicy.load(l1, methods=())
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(('entries', 'sentence'), [
    ({'head': 'flow'}, "names the head 'flow'; it must be one of l1, discrete"),
    ({'text_config': {'num_key_value_heads': 8}}, 'grouped key-value heads'),
    ({'text_config': {'rope_scaling': {'type': 'linear'}}}, 'scaled rotary'),
])
def test_an_architecture_that_is_not_supported_says_so(entries, sentence):
    with pytest.raises(ValueError, match=sentence):
        config_of({**variants.CONFIG, **entries})


# --- FiLM ---


def to_wrapped_film(directory, rank=4, alpha=None):
    """Split the weights into base and adapter, as fine-tuning saves a FiLM backbone."""
    path = variants.to_pt(directory, 'vision_backbone', prefix='')
    state, wrapped = torch.load(path, weights_only=True), {}
    scale = (alpha or min(rank, 16)) / rank
    for name, tensor in state.items():
        stem, _, kind = name.rpartition('.')
        adapted = stem.endswith(('qkv', 'proj', 'fc1', 'fc2'))
        if not adapted:
            wrapped[name] = tensor
        elif kind == 'bias':
            wrapped[f'{stem}.base_layer.bias'] = tensor
        else:
            rows, columns = tensor.shape[0], tensor[0].numel()
            a, b = torch.randn(rank, columns), torch.randn(rows, rank)
            wrapped[f'{stem}.base_layer.weight'] = tensor - scale * (b @ a).view(tensor.shape)
            if tensor.ndim == 4:  # a convolution's adapter is a convolution
                a, b = a.view(rank, *tensor.shape[1:]), b[:, :, None, None]
            wrapped[f'{stem}.lora_A.default.weight'] = a
            wrapped[f'{stem}.lora_B.default.weight'] = b
    torch.save(wrapped, path)
    return path


@pytest.fixture(scope='module')
def film(tmp_path_factory):
    return variants.make(tmp_path_factory.mktemp('film') / 'film', film=True)


def test_a_film_backbone_is_recognised_and_the_instruction_reaches_the_encoders(film):
    policy = LocalPolicy.load(film, methods=())
    assert 'FiLM' in policy.description.architecture
    model, ids = policy._model, torch.tensor([[1, 40, 41, 3]])
    pixels = torch.randn(1, 2, 6, 56, 56)
    before = model.visual_features(pixels, ids)
    after = model.visual_features(pixels, torch.tensor([[1, 50, 51, 3]]))
    assert (after - before).abs().max() > 1e-3


def test_film_scales_and_shifts_between_attention_and_mlp_by_the_mean_of_the_text(film):
    model = variants.load(film)
    ids = torch.tensor([[1, 40, 41, 3]])
    table = model.language_model.embed_tokens.weight
    text = (table[1] + table[40] + table[41] + table[3] + table[2]) / 5  # stop is part of it
    block = model.vision_backbone.featurizer.blocks[0]
    x = torch.randn(1, 7, 24)
    attended = x + block.ls1(block.attn(block.norm1(x)))
    modulated = attended * (1 + block.scale(text)) + block.shift(text)
    expected = modulated + block.ls2(block.mlp(block.norm2(modulated)))
    torch.testing.assert_close(block(x, text[None]), expected)
    seen = []
    hook = block.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    model.visual_features(torch.randn(1, 2, 6, 56, 56), ids)
    hook.remove()
    torch.testing.assert_close(seen[0], text.expand(2, -1))


@pytest.mark.parametrize(('rank', 'alpha'), [(4, None), (32, None), (8, 2)])
def test_an_adapter_inside_a_film_backbone_is_merged(film, tmp_path, rank, alpha):
    directory = variants.copy(film, tmp_path / 'film')
    path = to_wrapped_film(directory, rank, alpha)
    assert any('.blocks.0.block.attn.qkv.base_layer.weight' in name
               for name in torch.load(path, weights_only=True))
    if alpha:
        (directory / 'lora_adapter').mkdir()
        (directory / 'lora_adapter' / 'adapter_config.json').write_text(
            json.dumps({'r': rank, 'lora_alpha': alpha}))
    expected = variants.load(film).state_dict()
    for name, tensor in variants.load(directory).state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-4)


# --- heads ---


def test_action_tokens_count_down_from_the_end_of_the_vocabulary():
    """Public sizes: 31999 is the lowest of 255 bin centres, 31744 and below the highest."""
    head = VocabularyHead(1, 1, bins=256, ids_end=32000, actions=7)
    ids = torch.tensor([[31999, 31998, 31872, 31745, 31744, 31743, 31999]])
    edges = np.linspace(-1, 1, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    expected = centres[[0, 1, 127, 254, 254, 254, 0]]
    np.testing.assert_allclose(head.decode(ids)[0, 0], expected, rtol=0, atol=1e-6)


def test_seven_tokens_with_a_cache_are_those_of_seven_full_causal_passes(made):
    model = variants.load(made['autoregressive'])
    rows = torch.randn(1, 9, 32)
    spans = lay_out({'bos': 1, 'visual': 6, 'prompt': 2})
    sequence = TokenSequence(rows, torch.arange(9)[None], spans)
    ids = model.generate(model.prefill(sequence, ForwardPass()))[0].tolist()
    for expected in ids:
        states = causal_states(model.language_model, rows)
        assert int(model.action_head.token_ids(states[0, -1])) == expected
        added = model.language_model.embed_words(torch.tensor([[expected]]))
        rows = torch.cat([rows, added], dim=1)
    assert len(set(ids)) > 1


def causal_states(model, rows):
    """The textbook decoder: every row at once, a triangular mask."""
    from vla_policy_node.nn.transformer import Rope

    total, heads = rows.shape[1], model.config.heads
    width = model.config.width // heads
    rope = Rope(torch.arange(total)[None], width, model.config.rope_theta, rows.dtype)
    hidden = torch.ones(total, total, dtype=torch.bool).triu(1)
    for layer in model.layers:
        attention, x = layer.self_attn, layer.input_layernorm(rows)
        query, key, value = (
            linear(x).view(1, total, heads, width).transpose(1, 2)
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj))
        logits = rope(query) @ rope(key).mT / width**0.5
        mixed = logits.masked_fill(hidden, -torch.inf).softmax(-1) @ value
        rows = rows + attention.o_proj(mixed.transpose(1, 2).flatten(2))
        rows = rows + layer.mlp(layer.post_attention_layernorm(rows))
    return model.norm(rows)


def test_a_base_policy_sees_one_camera_and_no_proprio(made):
    policy = LocalPolicy.load(made['autoregressive'], methods=())
    assert policy.description.spec.cameras == ('third_person',)
    seen = request().observation
    chunk = policy.infer(InferenceRequest(Observation(
        {'third_person': seen.images['third_person']}, np.zeros(8), seen.instruction)))
    np.testing.assert_array_equal(chunk.actions, policy.infer(InferenceRequest(seen)).actions)
    assert [selection.camera for selection in chunk.selections] == ['third_person']


def test_a_method_that_goes_by_motion_is_told_the_state_that_the_network_does_not_read(made):
    described = [LocalPolicy.load(made['autoregressive'], methods=methods).description.spec.state
                 for methods in ((), ('adp',))]
    assert described == [(), END_EFFECTOR_STATE]


def test_without_that_method_the_state_is_not_asked_for(made):
    plain = LocalPolicy.load(made['autoregressive'], methods=('adp',)).plain()
    assert plain.description == LocalPolicy.load(made['autoregressive'], methods=()).description


def test_fixed_shapes_are_refused_before_weights_are_read(made):
    def load_model(*_, **__):
        raise AssertionError('read')

    with pytest.raises(ValueError, match=(
            r"^Fixed shapes are not for the autoregressive head; choose optimisation 'none' or "
            r"'fused'[.]$")):
        LocalPolicy.load(
            made['autoregressive'], methods=(), optimisation='graphs', load_model=load_model)


def test_a_pretrained_policy_keeps_its_statistics_in_its_config(made, tmp_path):
    directory = variants.copy(made['autoregressive'], tmp_path / 'base')
    statistics = json.loads((directory / 'dataset_statistics.json').read_text())
    (action,) = (entry['action'] for entry in statistics.values())
    (directory / 'dataset_statistics.json').unlink()
    document = json.loads((directory / 'config.json').read_text())
    document['norm_stats'] = {'bridge_orig': {'action': action}, 'fractal': {'action': action}}
    (directory / 'config.json').write_text(json.dumps(document))
    with pytest.raises(ValueError, match='choose one of bridge_orig, fractal'):
        LocalPolicy.load(directory, methods=())
    policy = LocalPolicy.load(directory, methods=(), statistics_key='bridge_orig')
    assert len(policy.description.sha256) == 64
    assert policy.infer(request()).actions.shape == (1, 7)
    # Pre-training saw whole pictures; fine-tuning for LIBERO saw random crops.
    assert not read_model_config(directory).center_crop
    assert read_model_config(made['autoregressive']).center_crop
    (directory / 'config.json').write_text(json.dumps(document | {'center_crop': True}))
    assert read_model_config(directory).center_crop


def test_the_noise_schedule_is_the_squared_cosine():
    """Signal left after some of 100 steps, from the formula: cos((t + s) / (1 + s) pi / 2)^2."""
    signal = np.array(Ddim(100)._signal)
    share = (np.arange(1, 100) / 100 + 0.008) / 1.008
    expected = np.cos(share * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(signal[:-1], expected, rtol=1e-9)
    assert signal[-1] == pytest.approx(signal[-2] * 0.001)


def test_denoising_with_the_true_noise_finds_the_actions():
    schedule = Ddim(50)
    clean = torch.rand(1, 8, 7, dtype=torch.float64) * 1.8 - 0.9
    noise = torch.randn(1, 8, 7, dtype=torch.float64)
    signal = schedule._signal[-1]
    noisy = signal**0.5 * clean + (1 - signal) ** 0.5 * noise
    for step in schedule.steps:
        now = schedule._signal[step]
        noise = (noisy - now**0.5 * clean) / (1 - now) ** 0.5
        noisy = schedule.step(noise, step, noisy)
    torch.testing.assert_close(noisy, clean)


def test_the_diffusion_head_sees_the_step_and_the_noisy_actions(made):
    model = variants.load(made['diffusion'])
    sequences = []
    model.language_model.register_forward_pre_hook(
        lambda _, arguments: sequences.append(arguments[0]))
    pixels, proprio = torch.randn(1, 2, 6, 56, 56), torch.zeros(1, 8)
    actions = model((pixels, proprio, torch.tensor([[1, 40, 3]])))
    assert actions.shape == (1, 8, 7)
    assert len(sequences) == model.config.diffusion_steps == 50
    first, last = sequences[0].states[0], sequences[-1].states[0]
    assert len(first) == 1 + 32 + 1 + 1 + 2 + 56 + 1
    changed = (first != last).any(dim=1).nonzero().flatten().tolist()
    assert changed == [34, *range(37, 93)]  # the row after proprio, the action slots
    half = torch.arange(16) / 15
    angle = 49 * 10000**-half
    torch.testing.assert_close(first[34], torch.cat([angle.sin(), angle.cos()]))


# --- what a checkpoint was evaluated with ---


@pytest.mark.parametrize(('path', 'rows'), [
    ('/data/openvla-7b-oft-finetuned-libero-10', 'oft'),
    ('/cache/models--moojink--openvla-7b-oft-finetuned-libero-goal/snapshots/ab12', 'oft'),
    ('/cache/models--TTJiang--LightVLA-libero-10/snapshots/ab12', 'last56'),
    ('/data/lightvla-libero-spatial', 'last56'),
    ('/data/my-robot', ''),
])
def test_public_checkpoints_read_the_rows_they_were_evaluated_with(path, rows, tmp_path):
    assert published_action_rows(tmp_path.__class__(path)) == rows


def test_the_name_of_a_public_checkpoint_decides_unless_something_else_is_asked(made, tmp_path):
    directory = variants.copy(made['l1'], tmp_path / 'LightVLA-libero-10')
    assert LocalPolicy.load(directory, methods=()).description.action_rows == 'last56'
    assert LocalPolicy.load(directory, action_rows='oft').description.action_rows == 'oft'
    directory = variants.copy(made['l1'], tmp_path / 'openvla-7b-oft-finetuned-libero-10')
    assert LocalPolicy.load(directory, methods=('lightvla',)).description.action_rows == 'oft'


def test_a_chunk_length_the_files_do_not_tell_can_be_given(made):
    policy = LocalPolicy.load(made['l1'], chunk_length=5)
    assert policy.infer(request()).actions.shape == (5, 7)


@pytest.mark.parametrize(('length', 'sentence'), [
    (-1, 'chunk_length must be 1 or more, not -1[.]'),
    (500, 'chunk_length 500 leaves no room for a prompt: images and actions make '
          r'\d+ sequence rows, the policy takes \d+[.]'),
])
def test_a_chunk_length_that_cannot_be_is_refused_before_weights_are_read(made, length, sentence):
    def load_model(*_, **__):
        raise AssertionError('read')

    with pytest.raises(ValueError, match=f'^{sentence}$'):
        LocalPolicy.load(made['l1'], methods=(), chunk_length=length, load_model=load_model)


# --- the hub ---

ID = 'owner/some-policy'


@pytest.fixture
def hub_cache(made, tmp_path):
    """A cache of the hub as its library leaves it, with one model."""
    root = tmp_path / 'hub' / 'models--owner--some-policy'
    snapshot = root / 'snapshots' / ('a' * 40)
    shutil.copytree(made['l1'], snapshot)
    (root / 'refs').mkdir()
    (root / 'refs' / 'main').write_text('a' * 40)
    return tmp_path / 'hub'


def offline(cache, code):
    environment = {'HF_HUB_OFFLINE': '1', 'HF_HUB_CACHE': str(cache), 'PATH': '/usr/bin:/bin',
                   'OMP_NUM_THREADS': '1'}
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          env=environment, check=False)


def test_an_id_of_the_hub_is_found_in_its_cache_without_a_network(hub_cache):
    code = ('from vla_policy_node.checkpoints.hub import find_checkpoint;'
            f'print(find_checkpoint({ID!r}))')
    done = offline(hub_cache, code)
    assert done.stdout.strip() == str(
        hub_cache / 'models--owner--some-policy' / 'snapshots' / ('a' * 40)), done.stderr


def test_without_network_and_cache_there_is_one_sentence(tmp_path):
    code = ('from vla_policy_node.checkpoints.hub import find_checkpoint\n'
            f'try: find_checkpoint({ID!r})\n'
            'except ValueError as error: print(error)')
    done = offline(tmp_path, code)
    assert 'There is no directory owner/some-policy' in done.stdout, done.stderr
    assert 'HF_HUB_OFFLINE forbids' in done.stdout
    assert done.stdout.count('\n') == 1


def test_only_what_a_policy_needs_is_downloaded(monkeypatch, tmp_path):
    from fnmatch import fnmatch

    from vla_policy_node.checkpoints import hub

    asked = {}

    def snapshot_download(repository, revision, allow_patterns):
        asked.update(repository=repository, revision=revision, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr('huggingface_hub.snapshot_download', snapshot_download)
    assert hub.find_checkpoint('TTJiang/LightVLA-libero-10@d40628f') == tmp_path
    assert (asked['repository'], asked['revision']) == ('TTJiang/LightVLA-libero-10', 'd40628f')

    def wanted(name):
        return any(fnmatch(name, pattern) for pattern in asked['patterns'])

    assert all(wanted(name) for name in (
        'config.json', 'tokenizer.json', 'model-00001-of-00004.safetensors',
        'model.safetensors.index.json', 'action_head--40000_checkpoint.pt',
        'proprio_projector--150000_checkpoint.pt', 'vision_backbone--10_checkpoint.pt'))
    assert not any(wanted(name) for name in (
        'modeling_prismatic.py', 'lora_adapter/adapter_model.safetensors', 'README.md'))


@pytest.mark.parametrize(('name', 'sentence'), [
    ('/no/such/place', 'has no config.json; there is no such directory'),
    ('./runs/best', 'there is no such directory'),
    (__file__, 'is a file; name the checkpoint directory'),
])
def test_a_path_that_is_no_directory_asks_no_hub(monkeypatch, name, sentence):
    monkeypatch.setattr('huggingface_hub.snapshot_download', None)
    with pytest.raises(ValueError, match=sentence):
        LocalPolicy.load(name)


def test_a_file_of_the_hubs_cache_need_not_be_read_for_its_hash(made, tmp_path):
    plain = fingerprint(made['l1'])
    blobs, snapshot = tmp_path / 'blobs', tmp_path / 'snapshot'
    blobs.mkdir()
    variants.copy(made['l1'], snapshot)
    path = snapshot / 'model.safetensors'
    blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
    shutil.move(path, blob)
    path.symlink_to(blob)
    assert fingerprint(snapshot) == plain
    blob.write_bytes(b'not read')
    assert fingerprint(snapshot) == plain
