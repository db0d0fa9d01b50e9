"""EfficientVLA (arXiv 2506.10100): each part's invariants, and the paper's own accounting."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import checkpoint_variants as variants
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import CONFIG, hide_all_but, shared, shared_model, shared_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from vla_policy_node.acceleration import Method, create, prepare
from vla_policy_node.acceleration.efficientvla_cache import EfficientVlaCache
from vla_policy_node.acceleration.efficientvla_tokens import EfficientVlaTokens, choose_tokens
from vla_policy_node.compression.layer_removal import (
    channel_norms,
    layer_importance,
    least_important,
    narrow_mlps,
    remove_layers,
)
from vla_policy_node.families import config_of, count_flops, create_network, sequence_rows
from vla_policy_node.nn.denoising import DiffusionStep
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.vision import VisionEncoder

COGACT_CONFIG = config_of({**variants.CONFIG, **variants.COGACT, 'head': 'cogact',
                             'text_config': {**variants.CONFIG['text_config'],
                                             'num_hidden_layers': 3}})


@shared
def cogact_model():
    return variants.random_model(COGACT_CONFIG).requires_grad_(False)


def cogact_sequence(seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(1, 1, 6, 56, 56, generator=generator)
    ids = torch.tensor([[1, 7, 9, 11, 3]])
    model = cogact_model()
    return model.assemble(model.visual(pixels, ids), torch.zeros(1, 0), ids)


CONFIGS = {'OFT': CONFIG, 'CogACT': COGACT_CONFIG}


@shared
def model_and_sequence(name):
    if name == 'OFT':
        return shared_model(), shared_sequence()
    return cogact_model(), cogact_sequence()


def prepared(name, model_name, **settings):
    method = create(name, **settings)
    prepare([method], Path(), CONFIGS[model_name])
    return method


# Part 1: layers.

def test_removing_no_layer_and_no_width_changes_no_bit():
    for model, sequence in map(model_and_sequence, CONFIGS):
        expected = model.prefill(sequence, ForwardPass())
        remove_layers(model, [])
        narrow_mlps(model, 1.0)
        assert torch.equal(model.prefill(sequence, ForwardPass()), expected)


def test_a_layer_that_does_nothing_has_no_importance_and_its_removal_is_exact():
    model = variants.random_model(COGACT_CONFIG, seed=1).requires_grad_(False)
    sequence = cogact_sequence()
    layer = model.language_model.layers[1]
    layer.self_attn.o_proj.weight.zero_()
    layer.mlp.down_proj.weight.zero_()
    importance = layer_importance(model.language_model, [sequence, cogact_sequence(1)])
    assert importance.shape == (3,)
    assert abs(importance[1]) < 1e-12
    assert importance[[0, 2]].min() > 1e-3
    assert least_important(importance, 1) == [1]
    expected = model.prefill(sequence, ForwardPass())
    remove_layers(model, least_important(importance, 1))
    assert torch.equal(model.prefill(sequence, ForwardPass()), expected)
    assert model.config.language_model.layers == len(model.language_model.layers) == 2


def test_importance_is_one_minus_the_mean_cosine_of_input_and_output():
    states = []

    class Inputs(Method):
        def watch_attention(self, index, sequence, attention):
            states.append(sequence.states[0].double().numpy())

    model, sequence = model_and_sequence('OFT')
    model.prefill(sequence, ForwardPass([Inputs()]))
    importance = layer_importance(model.language_model, [sequence])
    for index, (x, y) in enumerate(pairwise(states)):
        x, y = x[x.any(1)], y[x.any(1)]  # action slots enter as zeros
        cosines = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
        assert importance[index].item() == pytest.approx(1 - cosines.mean(), abs=1e-9)


def test_layers_are_chosen_by_importance_and_one_must_stay():
    importance = torch.tensor([0.5, 0.1, 0.3, 0.1])
    assert [least_important(importance, n) for n in range(4)] == [[], [1], [1, 3], [1, 2, 3]]
    with pytest.raises(ValueError, match='at least one must stay'):
        least_important(importance, 4)
    with pytest.raises(ValueError, match='no importance'):
        layer_importance(shared_model().language_model, [])


def test_channels_that_weigh_nothing_go_first_and_cost_nothing():
    model = variants.random_model(COGACT_CONFIG, seed=2).requires_grad_(False)
    sequence = cogact_sequence()
    dead = torch.arange(0, 48, 4)
    for index, layer in enumerate(model.language_model.layers):
        weights = (layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight,
                   layer.mlp.down_proj.weight.T)
        weights[index][dead] = 0  # any of the three silences a channel
    expected = model.prefill(sequence, ForwardPass())
    narrow_mlps(model, 0.75)
    assert model.config.language_model.mlp_width == 36
    for layer in model.language_model.layers:
        assert channel_norms(layer.mlp).min() > 0
        assert layer.mlp.down_proj.weight.shape == (32, 36)
    torch.testing.assert_close(model.prefill(sequence, ForwardPass()), expected, rtol=0, atol=1e-5)


# Part 2: visual tokens.

@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 8), st.floats(0, 1),
       st.integers(0, 1000))
def test_three_disjoint_sets_of_the_right_sizes(total, count, key, alpha, seed):
    generator = torch.Generator().manual_seed(seed)
    count = min(count, total)
    sets = choose_tokens(
        torch.rand(total, generator=generator), torch.randn(total, 5, generator=generator),
        count, key, alpha)
    key = min(key, count)
    task = int(alpha * (count - key))
    assert [len(part) for part in sets] == [key, task, count - key - task]
    assert len(set(torch.cat(sets).tolist())) == count


def test_alpha_of_1_is_plain_relevance_and_key_tokens_come_first():
    relevance, features = torch.rand(20), torch.randn(20, 6)
    ranked = relevance.argsort(descending=True)
    assert torch.equal(torch.cat(choose_tokens(relevance, features, 10, 4, 1.0)), ranked[:10])
    key, task, _ = choose_tokens(relevance, features, 10, 4, 0.5)
    assert torch.equal(torch.cat([key, task]), ranked[:7])


def test_diversity_is_measured_against_the_key_tokens_and_a_copy_of_one_is_dropped():
    generator = torch.Generator().manual_seed(3)
    relevance = torch.rand(20, generator=generator)
    features = torch.randn(20, 6, generator=generator)
    key, _, diverse = choose_tokens(relevance, features, 10, 4, 0.0)
    directions = features / features.norm(dim=1, keepdim=True)
    rest = [token for token in range(20) if token not in key]
    diversity = 1 - (directions[rest] @ directions[key].T).amax(1)
    assert diverse.tolist() == [rest[i] for i in diversity.argsort(descending=True)[:6]]
    features[diverse[0]] = 3 * features[key[1]]
    assert diverse[0] not in choose_tokens(relevance, features, 10, 4, 0.0)[2]


@pytest.mark.parametrize('count', [32, 1000])
@pytest.mark.parametrize('name', CONFIGS)
def test_keeping_every_token_changes_no_bit(name, count):
    model, sequence = model_and_sequence(name)
    method = prepared('efficientvla_tokens', name, count=count)
    kept = model.prefill(sequence, ForwardPass([method]))
    assert torch.equal(kept, model.prefill(sequence, ForwardPass()))
    assert method.report().kept.all()


@pytest.mark.parametrize(('name', 'direction'), [
    ('OFT', 'words'), ('OFT', 'tokens'), ('CogACT', 'words')])
def test_dropped_tokens_equal_hidden_ones_and_the_scores_are_the_attention(name, direction):
    model, sequence = model_and_sequence(name)
    method = prepared('efficientvla_tokens', name, count=9, attention_from=direction)
    dropped = model.prefill(sequence, ForwardPass([method]))
    report = method.report()
    assert (report.kept.sum(), report.layer) == (9, 2)
    maps = []

    class Hide(Method):
        def watch_attention(self, index, sequence, attention):
            if index == 1:
                maps.append(attention(slice(None))[0].mean(0))

        def before_layer(self, index, sequence):
            return hide_all_but(sequence, report.kept) if index == 2 else sequence

    hidden = model.prefill(sequence, ForwardPass([Hide()]))
    torch.testing.assert_close(hidden, dropped, rtol=0, atol=2e-5)
    visual = sequence.span('visual')
    total = sequence.states.shape[1]
    # Proprio comes before the prompt, action slots and stop after it; CogACT's last is the stop.
    prompt = (slice(visual.stop + 1, total - 57) if name == 'OFT' else slice(visual.stop, total))
    expected = (maps[0][prompt, visual].sum(0) if direction == 'words'
                else maps[0][visual, prompt].sum(1))
    np.testing.assert_allclose(report.scores, expected, rtol=1e-4, atol=1e-6)
    method.reset()
    assert method.report() is None


@pytest.mark.parametrize(('name', 'settings', 'sentence'), [
    ('OFT', {'layer': 4}, 'the last one is 3'),
    ('CogACT', {'attention_from': 'tokens'}, "use 'words'"),
    ('CogACT', {'attention_from': 'nobody'}, 'must be one of words, tokens'),
    ('CogACT', {'alpha': 1.5}, 'alpha in'),
    ('CogACT', {'count': -1}, 'count of at least 0'),
    ('CogACT', {'key': 0}, 'at least 1'),
])
def test_settings_that_do_not_fit_are_refused(name, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        prepared('efficientvla_tokens', name, **settings)


# Part 3: the action head.

COGNITION = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(4))


class BlockCounter:
    """Counts how often blocks of the head run."""

    def __enter__(self):
        self.count = 0
        self._handles = [block.register_forward_hook(self._note)
                         for block in cogact_model().action_head.blocks]
        return self

    def _note(self, *_):
        self.count += 1

    def __exit__(self, *_):
        for handle in self._handles:
            handle.remove()


def states_of(steps, actions=None):
    embedder = cogact_model().action_head.z_embedder
    none = embedder.uncondition.expand_as(COGNITION)
    conditions = embedder(torch.cat([COGNITION, none]))
    generator = torch.Generator().manual_seed(6)
    return [
        DiffusionStep(cogact_model().action_head, index, torch.randn(1, 16, 7, generator=generator)
                      if actions is None else actions, step, conditions, 1.5)
        for index, step in enumerate(steps)
    ]


def denoised(method, cognition=None):
    """The actions of a pass of their own."""
    forward_pass = ForwardPass([method])
    forward_pass.begin()
    return cogact_model().denoise(COGNITION if cognition is None else cognition, forward_pass)


@pytest.mark.parametrize(('interval', 'full'), [(1, 10), (5, 2), (10, 1), (3, 4)])
def test_blocks_run_in_every_interval_th_step(interval, full):
    method = prepared('efficientvla_cache', 'CogACT', interval=interval)
    with BlockCounter() as counter:
        first = denoised(method)
    assert counter.count == full * len(cogact_model().action_head.blocks)
    assert method.report().denoising_reused == 10 - full
    assert torch.equal(denoised(method), first)
    assert torch.equal(first, cogact_model().denoise(COGNITION, ForwardPass())) == (interval == 1)
    method.reset()
    assert method.report() is None


def test_what_is_kept_does_not_reach_the_next_inference():
    method = prepared('efficientvla_cache', 'CogACT')
    expected = denoised(method)
    denoised(method, -3 * COGNITION)
    assert torch.equal(denoised(method), expected)


def test_a_reuse_step_adds_what_attention_and_mlp_of_every_block_added():
    """The collapsed form is the paper's: x + C_attn + C_mlp, block by block."""
    first, second = states_of([90, 80])
    outputs = []
    head = cogact_model().action_head
    parts = [part for block in head.blocks for part in (block.attn, block.mlp)]
    handles = [part.register_forward_hook(lambda _, __, output: outputs.append(output))
               for part in parts]
    _, added = first.run()
    for handle in handles:
        handle.remove()
    waves = torch.zeros(1, 256)  # a reuse step needs no diffusion step: its row is dropped
    rows = torch.cat([
        head.t_embedder.mlp(waves)[:, None] + second.conditions,
        head.embed(second.actions).repeat(2, 1, 1)], dim=1) + head.positional_embedding
    for output in outputs:
        rows = rows + output
    noise = second._guide(head.finish(rows[:, 1:]))
    torch.testing.assert_close(second.reuse(added), noise, rtol=0, atol=2e-5)
    # One sum for both halves of a guided pass would be another result.
    wrong = second.reuse(added[:1].repeat(2, 1, 1))
    assert (wrong - noise).abs().max() > 1e-3


def test_a_reuse_step_does_not_depend_on_the_diffusion_step():
    full, early, late = states_of([90, 80, 10], torch.ones(1, 16, 7))
    _, added = full.run()
    assert torch.equal(early.reuse(added), late.reuse(added))
    assert (early.run()[0] - late.run()[0]).abs().max() > 1e-3


def test_a_reuse_step_is_one_embedding_one_sum_one_norm_and_one_product():
    class Operations(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = Counter()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names[function.overloadpacket.__name__] += 1
            return function(*args, **(kwargs or {}))

    full, state = states_of([90, 80])
    _, added = full.run()
    conditional = replace(state, conditions=state.conditions[:1], guidance=1.0)
    with Operations() as operations:
        conditional.reuse(added[:1])
    arithmetic = {name: count for name, count in operations.names.items()
                  if name in ('addmm', 'mm', 'bmm', 'add', 'mul', 'native_layer_norm', 'softmax')}
    assert arithmetic == {'addmm': 2, 'add': 1, 'native_layer_norm': 1}


def test_the_cache_is_for_heads_that_denoise():
    with pytest.raises(ValueError, match='needs a policy whose action head denoises'):
        prepared('efficientvla_cache', 'OFT')
    with pytest.raises(ValueError, match='at least 1'):
        EfficientVlaCache(interval=0)


def test_the_parts_work_together():
    model, sequence = model_and_sequence('CogACT')
    tokens = prepared('efficientvla_tokens', 'CogACT', count=7)
    cache = prepared('efficientvla_cache', 'CogACT')

    def begun():
        for method in (tokens, cache):
            method.begin_pass()

    begun()
    both = ForwardPass([tokens, cache])
    together = model.decode(model.prefill(sequence, both), both)
    begun()
    apart = model.decode(model.prefill(sequence, ForwardPass([tokens])), ForwardPass([cache]))
    assert torch.equal(together, apart)
    assert isinstance(tokens, EfficientVlaTokens)


# The paper's figures at full size, from shapes alone.

PUBLIC = config_of({
    'vision_backbone_id': 'dinosiglip-vit-so-224px', 'head': 'cogact', 'dit': {},
    'chunk_length': 16, 'cameras': 1, 'proprio': False})
PROMPT_IDS = 25  # with the cognition token 26 rows of text, 282 in all


def public_model(layers=32, mlp_share=1.0):
    """CogACT-Base on the meta device, made smaller by the functions that make real ones so."""
    with torch.device('meta'):
        model = create_network(PUBLIC).requires_grad_(False)
    remove_layers(model, range(32 - layers))
    if mlp_share < 1:
        narrow_mlps(model, mlp_share)
    return model


def unused_parameters():
    """What public files hold and no inference uses: vocabulary head, blocks, norms, pooling."""
    text = PUBLIC.language_model
    count = text.width * text.vocabulary
    for encoder, blocks in ((PUBLIC.dino, 24), (PUBLIC.siglip, 27)):
        with torch.device('meta'):
            whole = VisionEncoder(replace(encoder, blocks=blocks))
            used = VisionEncoder(encoder)
        count += sum(p.numel() for p in whole.parameters())
        count -= sum(p.numel() for p in used.parameters())
        count += 2 * encoder.width
    width, hidden = PUBLIC.siglip.width, PUBLIC.siglip.mlp_width
    return count + 4 * width * (width + 1) + 3 * width + 2 * width * hidden + hidden + width


@pytest.mark.parametrize(('layers', 'mlp_share', 'billions'), [
    (32, 1.0, 7.63), (28, 0.75, 5.87), (22, 0.75, 4.86)])
def test_parameters_are_those_of_table_2(layers, mlp_share, billions):
    parameters = sum(p.numel() for p in public_model(layers, mlp_share).parameters())
    assert (parameters + unused_parameters()) / 1e9 == pytest.approx(billions, abs=0.005)


def layer_rows(layers, count):
    rows = sequence_rows(PUBLIC, PROMPT_IDS)
    return [rows if index < 2 else rows - 256 + count for index in range(layers)]


def paper_flops(config, rows):
    """Our count, and what the paper counts besides: all rows of the last layer, and all words."""
    text, last = config.language_model, rows[-1]
    unread = (last - 1) * (2 * text.width**2 + 3 * text.width * text.mlp_width
                           + 2 * last * text.width)
    words = last * text.width * text.vocabulary
    return sum(count_flops(config, rows).values()) + 2 * (unread + words)


def test_flops_of_each_module_are_those_of_table_1():
    flops = count_flops(PUBLIC, layer_rows(32, 256))
    assert flops['vision'] == pytest.approx(405.5e9, rel=0.01)
    assert flops['head'] == pytest.approx(57.96e9, rel=0.01)
    assert paper_flops(PUBLIC, layer_rows(32, 256)) == pytest.approx(4.19e12, rel=0.015)


@pytest.mark.parametrize(('layers', 'count', 'percent', 'run_here'), [
    (28, 112, 45.1, 44.1), (28, 56, 32.9, 32.2), (22, 112, 38.2, 37.2), (22, 56, 28.9, 28.1)])
def test_relative_flops_are_those_of_table_2(layers, count, percent, run_here):
    config = public_model(layers, 0.75).config
    dense = layer_rows(32, 256)
    share = paper_flops(config, layer_rows(layers, count)) / paper_flops(PUBLIC, dense)
    assert 100 * share == pytest.approx(percent, abs=1)
    # What really runs is less: the head is cached too, the last layer computes one row.
    ours = count_flops(config, layer_rows(layers, count), 8), count_flops(PUBLIC, dense)
    share = sum(ours[0].values()) / sum(ours[1].values())
    assert 100 * share == pytest.approx(run_here, abs=0.05)


@pytest.mark.parametrize(('count', 'tera'), [(56, 1.76), (72, 1.96), (96, 2.25), (112, 2.45)])
def test_flops_by_tokens_are_those_of_table_4(count, tera):
    assert paper_flops(PUBLIC, layer_rows(32, count)) / 1e12 == pytest.approx(tera, rel=0.03)
