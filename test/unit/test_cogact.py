"""CogACT as a policy: sizes, attention, files of our own and of the public repositories."""

import hashlib
import json
import shutil
from dataclasses import replace

import checkpoint_variants as variants
import numpy as np
import pytest
import torch

from vla_policy_node.acceleration import Method, create
from vla_policy_node.checkpoints.fingerprint import fingerprint
from vla_policy_node.checks.report import check_checkpoint
from vla_policy_node.families import config_of, count_flops, create_network, read_model_config
from vla_policy_node.nn.config import DitConfig
from vla_policy_node.nn.dit import DiffusionTransformer
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.kv_cache import KvCache
from vla_policy_node.nn.sequence import TokenSequence, lay_out
from vla_policy_node.policy.interface import InferenceRequest, Observation
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.runtime import loading, small

TWO_CAMERAS = {**variants.COGACT, 'cameras': 2, 'proprio': True}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """Checkpoint directories, not to be changed."""
    root = tmp_path_factory.mktemp('cogact')
    made = {
        'one camera': variants.make(root / 'one', 'cogact', **variants.COGACT),
        'two cameras': variants.make(root / 'two', 'cogact', **TWO_CAMERAS),
    }
    made['released'] = variants.to_cogact_release(made['one camera'], root / 'released')
    return made


@pytest.fixture
def released(made, tmp_path):
    return shutil.copytree(made['released'], tmp_path / 'released')


def request(seed=0, instruction='pick up the bowl', px=56):
    random = np.random.default_rng(seed)
    images = {name: random.integers(0, 256, (px, px, 3), np.uint8)
              for name in ('third_person', 'wrist')}
    proprio = np.array([-0.1, 0.0, 0.9, 2.6, 0.0, 0.0, 0.02, -0.02])
    return InferenceRequest(Observation(images, proprio, instruction))


def sequence_of(model, prompts=((1, 7, 9, 11, 3),), seed=0):
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(
        len(prompts), config.cameras, 6, config.image_px, config.image_px, generator=generator)
    proprio = torch.zeros(len(prompts), 8)
    ids = torch.tensor(prompts)
    return model.assemble(model.visual(pixels, ids), proprio, ids)


@pytest.mark.parametrize('kind', ['one camera', 'two cameras', 'released'])
def test_it_serves_like_any_other_checkpoint(made, kind):
    policy = LocalPolicy.load(made[kind], methods=())
    assert policy.description.architecture.startswith('CogACT: ')
    assert policy.description.chunk_length == 16
    chunk = policy.infer(request())
    assert chunk.actions.shape == (16, 7)
    assert chunk.tokens_total == (32 if kind == 'two cameras' else 16)
    assert set(chunk.actions[:, 6]) <= {0.0, 1.0}
    assert set(chunk.stage_ms) == {
        'preprocess', 'upload', 'vision', 'select', 'language_model', 'head'}
    np.testing.assert_array_equal(policy.infer(request()).actions, chunk.actions)
    for other in (request(1), request(instruction='open the drawer')):
        assert np.abs(policy.infer(other).actions - chunk.actions).max() > 1e-4


@pytest.mark.parametrize('kind', ['one camera', 'two cameras', 'released'])
def test_vla_check_passes_it(made, kind):
    findings = {finding.name: finding for finding in check_checkpoint(made[kind])}
    assert {name for name, found in findings.items() if found.verdict == 'FAIL'} == set()
    assert 'causal' in findings['attention'].text
    assert 'cognition token' in findings['action rows'].text
    assert 'CogACT' in findings['policy'].text


def test_the_released_layout_holds_the_same_policy(made):
    ours, theirs = (variants.load(made[kind]) for kind in ('one camera', 'released'))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name
    expected = replace(ours.config, language_model=replace(
        ours.config.language_model, norm_eps=1e-5), action_ids_end=theirs.config.action_ids_end,
        action_bins=theirs.config.action_bins)
    assert theirs.config == expected


def test_released_pictures_are_resized_by_pillow(made):
    from PIL import Image

    policy = LocalPolicy.load(made['released'], methods=())
    image = request(px=96).observation.images['third_person']
    pixels = policy._inputs.preprocessor(image)
    resized = np.array(Image.fromarray(image).resize((56, 56), Image.Resampling.BICUBIC))
    torch.testing.assert_close(pixels, policy._inputs.preprocessor.normalise(resized))


def test_the_one_file_of_a_release_is_in_its_fingerprint_once(made):
    release = made['released']
    paths = [release / 'checkpoints' / 'CogACT-Tiny.pt', release / 'config.json',
             release / 'dataset_statistics.json']
    lines = [f'{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n' for path in paths]
    assert fingerprint(release) == hashlib.sha256(''.join(lines).encode()).hexdigest()


@pytest.mark.parametrize(('spoil', 'sentence'), [
    (lambda d: (d / 'tokenizer.json').unlink(), 'copy the one of openvla/openvla-7b'),
    (lambda d: shutil.copyfile(d / 'checkpoints/CogACT-Tiny.pt', d / 'checkpoints/b.pt'),
     'holds 2 files'),
    (lambda d: torch.save({'model': {'action_model': {}}}, d / 'checkpoints/CogACT-Tiny.pt'),
     'no action model'),
    (lambda d: torch.save({'model': {'action_model': {'net.x': LocalPolicy}}},
                          d / 'checkpoints/CogACT-Tiny.pt'), 'could run code'),
    (lambda d: (d / 'config.json').write_text('{"vla": {"base_vlm": "siglip-224px+7b"}}'),
     "'siglip-224px"),
    (lambda d: (d / 'config.json').write_text(json.dumps(
        {**json.loads((d / 'config.json').read_text()), 'dit': {}})), 'number of heads'),
])
def test_a_release_that_cannot_run_says_why(released, spoil, sentence):
    spoil(released)
    with pytest.raises(ValueError, match=sentence):
        LocalPolicy.load(released, methods=())


@pytest.mark.parametrize(('entries', 'sentence'), [
    ({'head': 'cogact'}, "under 'dit'"), ({'dit': {}}, "under 'dit'")])
def test_sizes_of_the_head_belong_to_it_alone(entries, sentence):
    with pytest.raises(ValueError, match=sentence):
        config_of({**small.CONFIG, **entries})


@pytest.mark.parametrize(('sizes', 'millions'), [
    ((6, 384, 4), 13), ((12, 768, 12), 89), ((24, 1024, 16), 308)])
def test_published_heads_have_the_published_size(sizes, millions):
    with torch.device('meta'):
        head = DiffusionTransformer(DitConfig(*sizes), 4096, 16, 7)
    assert sum(p.numel() for p in head.parameters()) / 1e6 == pytest.approx(millions, abs=0.6)


def test_a_row_sees_itself_and_what_is_before_it(made):
    model = variants.load(made['two cameras'])
    sequence = sequence_of(model)
    states = model.language_model(sequence)
    for row in (0, 5, sequence.states.shape[1] - 2):
        changed = sequence.states.clone()
        changed[:, row] += 1
        moved = model.language_model(replace(sequence, states=changed)) - states
        assert not moved[:, :row].any()
        assert moved[:, row:].abs().amax(-1).min() > 0


def test_the_cognition_token_reads_what_token_by_token_decoding_reads(made):
    model = variants.load(made['two cameras'])
    sequence = sequence_of(model)
    cache = KvCache(room=sequence.states.shape[1])
    for row in range(sequence.states.shape[1]):
        rows = slice(row, row + 1)
        states = model.language_model(
            TokenSequence(sequence.states[:, rows], sequence.positions[:, rows],
                          lay_out({'prompt': 1})), cache=cache)
    torch.testing.assert_close(model.prefill(sequence, ForwardPass()), states, rtol=0, atol=2e-5)


def test_filled_up_prompts_of_a_batch_change_nothing(made):
    model = variants.load(made['two cameras'])
    together = sequence_of(model, ((1, 520, 520, 9, 3), (1, 7, 9, 11, 3)))
    states = model.prefill(together, ForwardPass())
    alone = model.prefill(sequence_of(model, ((1, 9, 3), (1, 9, 3))), ForwardPass())
    torch.testing.assert_close(states[:1], alone[:1], rtol=0, atol=2e-5)


@pytest.mark.parametrize(('name', 'settings'), [
    ('fastv', {'layer': 1, 'count': 9}), ('lightvla', {}), ('random_tokens', {'count': 9})])
def test_methods_drop_tokens_of_a_causal_model_as_if_they_were_hidden(made, name, settings):
    from tiny_model import hide_all_but

    model, method = variants.load(made['two cameras']), create(name, **settings)
    method.prepare(made['two cameras'], model.config)
    sequence = sequence_of(model)
    dropped = model.prefill(sequence, ForwardPass([method]))
    kept = method.report().kept
    assert kept.sum() < len(kept)

    class Hide(Method):
        def select_tokens(self, sequence):
            return sequence if method.report().layer else hide_all_but(sequence, kept)

        def before_layer(self, index, sequence):
            return hide_all_but(sequence, kept) if index == method.report().layer else sequence

    hidden = model.prefill(sequence, ForwardPass([Hide()]))
    torch.testing.assert_close(hidden, dropped, rtol=0, atol=2e-5)


class Twice(Method):
    def keys_values(self, index, sequence, key, value):
        return torch.cat([key, key], 2), torch.cat([value, value], 2)


def test_a_row_sees_of_appended_keys_those_that_are_not_behind_it(made):
    class Placed(Twice):
        def appended_positions(self, index, sequence):
            return sequence.positions

    model = variants.load(made['two cameras'])
    for sequence in (sequence_of(model), sequence_of(model, ((1, 5, 9, 3), (1, 7, 9, 3)))):
        # Each key counts twice, which changes no mean.
        torch.testing.assert_close(
            model.prefill(sequence, ForwardPass([Placed()])),
            model.prefill(sequence, ForwardPass()), rtol=0, atol=2e-5)


def test_keys_without_a_position_have_no_place_in_a_causal_model(made):
    model = variants.load(made['one camera'])
    with pytest.raises(ValueError, match='need positions in a causal language model'):
        model.prefill(sequence_of(model), ForwardPass([Twice()]))


def test_vla_cache_serves_a_causal_policy(made):
    settings = {'vla_cache': {'static': 12, 'relevant': 4}}
    policy = LocalPolicy.load(made['one camera'], methods=['vla_cache'], method_settings=settings)
    first, second = policy.infer(request()), policy.infer(request())
    assert first.tokens_kept == 16 > second.tokens_kept
    assert second.flops < first.flops
    np.testing.assert_allclose(second.actions, first.actions, rtol=0, atol=1e-4)


def test_guidance_of_one_is_the_conditional_prediction_at_half_the_price(made):

    model = variants.load(made['one camera'])
    cognition = model.prefill(sequence_of(model), ForwardPass())
    plain = replace(model.config, dit=replace(model.config.dit, guidance=1.0))
    rows = [10, 10]
    assert count_flops(plain, rows)['head'] < 0.6 * count_flops(model.config, rows)['head']
    guided = model.denoise(cognition, ForwardPass())
    # With a condition that is already none, guidance has nothing to move away from.
    none = model.action_head.z_embedder.uncondition[None]
    unmoved = model.denoise(none, ForwardPass())
    model.config = plain
    torch.testing.assert_close(model.denoise(none, ForwardPass()), unmoved, rtol=0, atol=1e-4)
    assert (model.denoise(cognition, ForwardPass()) - guided).abs().max() > 1e-3


def test_the_loss_is_the_error_of_the_noise_and_falls_to_0_with_it(made):
    model = variants.load(made['one camera']).train().requires_grad_(True)
    cognition, actions = torch.randn(3, 1, 32), torch.rand(3, 16, 7)

    def loss(**changes):
        settings = {'repeats': 4, 'generator': torch.Generator().manual_seed(5), **changes}
        return model.noise_loss(cognition, actions, **settings)

    assert torch.equal(loss(), loss())
    assert loss().item() != loss(repeats=2).item()
    loss(repeats=16).backward()
    assert model.action_head.z_embedder.uncondition.grad.abs().max() > 0
    with torch.no_grad():
        for parameter in model.action_head.final_layer.parameters():
            parameter.zero_()
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(12, 16, 7, generator=generator)
    assert loss().item() == pytest.approx(noise.square().mean().item())


def test_the_small_policy_runs_at_once(tmp_path):
    directory = small.create_small_checkpoint(tmp_path / 'small', config=small.COGACT_CONFIG)
    policy = LocalPolicy.load(directory, methods=['efficientvla_tokens', 'efficientvla_cache'])
    chunk = policy.infer(request(px=224))
    assert (chunk.tokens_kept, chunk.tokens_total) == (113, 512)
    assert np.isfinite(chunk.actions).all()
    assert policy.description.parameters < 20e6  # 40 MB in bfloat16


def test_public_sizes_are_read_from_a_public_config(tmp_path, monkeypatch):
    """The 7.6 billion weights themselves are not at hand; their shapes are."""
    document = {'vla': {'base_vlm': 'prism-dinosiglip-224px+7b'}}
    from vla_policy_node import families
    from vla_policy_node.checkpoints import cogact_release, weights

    family = families.named('cogact')

    config = config_of({
        'vision_backbone_id': 'dinosiglip-vit-so-224px', 'head': 'cogact', 'dit': {},
        'chunk_length': 16, 'cameras': 1, 'proprio': False})
    with torch.device('meta'):
        state = create_network(config).state_dict()

    class Names:
        def __enter__(self):
            names = {family.locate(name, config)[1]: tensor for name, tensor in state.items()}
            return set(names), names.get

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(weights, 'open_tensors', lambda path: Names())
    (tmp_path / 'tokenizer.json').touch()
    described = config_of(cogact_release.describe(tmp_path / 'checkpoints' / 'x.pt', document))
    assert described.dit == DitConfig()
    assert (described.chunk_length, described.cameras, described.proprio) == (16, 1, False)
    assert described.language_model.norm_eps == 1e-5
    assert described.language_model.layers == 32


def test_a_float_policy_may_run_in_bfloat16(made):
    config = read_model_config(made['one camera'])
    model = loading.load_model(made['one camera'], config, 'cpu', 'bfloat16')
    cognition = torch.randn(1, 1, 32, dtype=torch.bfloat16)
    assert model.decode(cognition, ForwardPass()).dtype == torch.float32


def say(directory, **entries):
    path = directory / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_what_is_written_into_the_config_of_a_release_is_read(released):
    names = ['forward', 'left', 'up', 'roll', 'pitch', 'yaw', 'hand_gripper']
    say(released, cameras=['front'], actions=names, normalisation='min_max', center_crop=True,
        chunk_length=16, method_settings={'fastv': {'keep': 3}})
    config = read_model_config(released)
    assert config.spec.cameras == ('front',)
    assert [quantity.name for quantity in config.spec.actions] == names
    assert (config.ranges, config.center_crop) == (('min', 'max'), True)
    assert config.method_settings == {'fastv': {'keep': 3}}


def test_a_state_that_the_weights_of_a_release_do_not_take_is_refused(released):
    say(released, state=['x', 'y'])
    with pytest.raises(ValueError, match=r'proprio_projector.*\.$'):
        LocalPolicy.load(released, methods=())
    say(released, proprio=False)
    assert read_model_config(released).spec.state == ()


def test_a_release_keeps_the_chunk_length_of_its_weights(released):
    say(released, chunk_length=8)
    with pytest.raises(ValueError, match=r'chunk_length 8; it must be 16, as in CogACT-Tiny\.pt'):
        read_model_config(released)
