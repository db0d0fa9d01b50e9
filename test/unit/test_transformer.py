"""Every style of decoder against the formulas, written out head by head and row by row."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_policy_node.nn.joint import Stream, joint_forward
from vla_policy_node.nn.kv_cache import KvCache
from vla_policy_node.nn.masks import BIDIRECTIONAL, CAUSAL, Visibility, make_mask
from vla_policy_node.nn.sequence import TokenSequence, lay_out
from vla_policy_node.nn.transformer import Decoder, DecoderConfig

STYLES = {
    'llama': DecoderConfig(width=24, layers=2, heads=4, mlp_width=40, vocabulary=9),
    'smollm': DecoderConfig(
        width=30, layers=2, heads=6, mlp_width=20, vocabulary=9, key_heads=2, head_width=4,
        norm_eps=1e-5, rope_theta=100.0),
    'gemma': DecoderConfig(
        width=16, layers=2, heads=4, mlp_width=24, vocabulary=9, key_heads=1, head_width=10,
        activation='gelu_tanh', norm_offset=True, embedding_scale=4.0),
    'adaptive expert': DecoderConfig(
        width=12, layers=2, heads=4, mlp_width=20, vocabulary=0, key_heads=1, head_width=10,
        activation='gelu_tanh', norm_offset=True, condition_width=6),
}
PI0 = Visibility(later=(('state',), ('actions',)))
ROWS = {'visual': 4, 'prompt': 3, 'state': 1, 'actions': 3}


def decoder(style, visibility=BIDIRECTIONAL):
    """With every weight moved from what it is initialised with."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(len(style))
        model = Decoder(STYLES[style], visibility).double()
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        return model


def sequence_of(width, rows=ROWS, seed=0, bias=None, positions=None):
    generator, total = torch.Generator().manual_seed(seed), sum(rows.values())
    states = torch.randn(2, total, width, generator=generator, dtype=torch.float64)
    positions = torch.arange(total) if positions is None else positions
    return TokenSequence(states, positions.expand(2, -1), lay_out(rows), bias)


def condition_of(config, seed=1):
    if not config.condition_width:
        return None
    return torch.randn(
        2, config.condition_width, generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64)


# --- the formulas, for one batch element: x [T, width], allowed [T, T] bool ---

def norm(module, x, config, condition):
    """Normed rows and the gate of what is made of them."""
    normed = torch.stack([row / math.sqrt(float((row**2).mean()) + config.norm_eps) for row in x])
    if condition is None:
        weight = module.weight + 1 if config.norm_offset else module.weight
        return normed * weight, 1.0
    scale, shift, gate = (module.dense.weight @ condition + module.dense.bias).chunk(3)
    return normed * (1 + scale) + shift, gate


def rotate(row, position, theta):
    """Pairs (i, i + half) turn by position * theta^(-i / half), as complex numbers."""
    half = len(row) // 2
    turns = torch.tensor([position * theta ** (-i / half) for i in range(half)]).double()
    turned = torch.complex(row[:half], row[half:]) * torch.polar(torch.ones_like(turns), turns)
    return torch.cat([turned.real, turned.imag])


def activation(x, name):
    if name == 'silu':
        return x / (1 + torch.exp(-x))
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def reference(model, x, positions, allowed, condition):
    config, width = model.config, model.config.head_dim
    group = config.heads // (config.key_heads or config.heads)
    for layer in model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        y, gate = norm(layer.input_layernorm, x, config, condition)
        query, key, value = (
            y @ linear.weight.T
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj))
        heads = []
        for head in range(config.heads):
            own = slice(head * width, (head + 1) * width)
            shared = slice(head // group * width, (head // group + 1) * width)
            q, k = (
                torch.stack([rotate(row, float(place), config.rope_theta)
                             for row, place in zip(rows, positions, strict=True)])
                for rows in (query[:, own], key[:, shared]))
            logits = (q @ k.T / math.sqrt(width)).masked_fill(~allowed, -torch.inf)
            heads.append(logits.softmax(dim=1) @ value[:, shared])
        x = x + gate * (torch.cat(heads, dim=1) @ attention.o_proj.weight.T)
        y, gate = norm(layer.post_attention_layernorm, x, config, condition)
        hidden = activation(y @ mlp.gate_proj.weight.T, config.activation)
        x = x + gate * ((hidden * (y @ mlp.up_proj.weight.T)) @ mlp.down_proj.weight.T)
    return norm(model.norm, x, config, condition)[0]


@pytest.mark.parametrize('style', STYLES)
@pytest.mark.parametrize('visibility', [BIDIRECTIONAL, CAUSAL, PI0], ids=['all', 'causal', 'pi0'])
def test_states_are_those_of_the_formulas(style, visibility):
    model = decoder(style, visibility).requires_grad_(False)
    places = torch.tensor([0, 1, 2, 5, 6, 7, 8, 9, 10, 14, 15])
    bias = torch.zeros(2, 11).index_fill_(1, torch.tensor([5]), -torch.inf)
    sequence = sequence_of(model.config.width, bias=bias, positions=places)
    condition = condition_of(model.config)
    states = model(sequence, condition=condition)
    last = model(sequence, slice(-3, None), condition=condition)
    allowed = make_mask(sequence, visibility).expand(2, 1, 11, 11)[:, 0] == 0
    for index in range(2):
        expected = reference(
            model, sequence.states[index], places, allowed[index],
            None if condition is None else condition[index])
        # Angles are computed in float32.
        torch.testing.assert_close(states[index], expected, rtol=0, atol=2e-5)
        torch.testing.assert_close(last[index], expected[-3:], rtol=0, atol=2e-5)


def test_embeddings_are_scaled_where_the_style_says_so():
    ids = torch.tensor([[1, 4]])
    for style in ('llama', 'gemma'):
        model = decoder(style)
        scale = model.config.embedding_scale
        assert torch.equal(model.embed_words(ids), scale * model.embed_tokens.weight[ids])


def test_a_decoder_without_words_has_no_table():
    assert not any('embed_tokens' in name for name in decoder('adaptive expert').state_dict())


def streams(seed=0, bias=None):
    """A prefix and the rows of an expert behind it, of other width and weights."""
    prefix_rows, suffix_rows = {'visual': 4, 'prompt': 3}, {'actions': 3}
    model, expert = decoder('gemma', PI0), decoder('adaptive expert', PI0)
    prefix = sequence_of(model.config.width, prefix_rows, seed, bias)
    suffix = sequence_of(
        expert.config.width, suffix_rows, seed + 1, positions=torch.arange(7, 10))
    return Stream(model, prefix), Stream(expert, suffix, condition_of(expert.config))


@settings(deadline=None)
@given(st.integers(0, 2**31), st.sets(st.integers(0, 5)))
def test_joint_attention_is_the_prefix_first_and_the_expert_with_its_cache(seed, hidden):
    bias = torch.zeros(2, 7)
    bias[:, sorted(hidden)] = -torch.inf
    first, second = streams(seed, bias)
    with torch.no_grad():
        together = joint_forward([first, second], PI0)
        cache = KvCache(room=3)
        prefix = first.decoder(first.sequence, cache=cache)
        suffix = second.decoder(second.sequence, cache=cache, condition=second.condition)
    torch.testing.assert_close(together[0], prefix, rtol=0, atol=1e-12)
    torch.testing.assert_close(together[1], suffix, rtol=0, atol=1e-12)


def test_of_the_prefixes_last_layer_only_keys_and_values_are_learnt_through_the_expert():
    first, second = streams()
    joint_forward([first, second], PI0)[1].square().sum().backward()
    last = first.decoder.layers[-1]
    assert last.self_attn.k_proj.weight.grad.abs().max() > 0
    assert last.self_attn.v_proj.weight.grad.abs().max() > 0
    for unread in (last.self_attn.q_proj, last.self_attn.o_proj, last.mlp.down_proj):
        assert unread.weight.grad is None or not unread.weight.grad.any()
    assert first.decoder.layers[0].mlp.up_proj.weight.grad.abs().max() > 0


def test_a_cache_needs_no_state_of_the_last_layer():
    """Where only an expert reads on, no row of the prefix asks in the last layer."""
    first, second = streams()
    answers = []
    for rows in (slice(None), slice(0, 0)):
        cache = KvCache()
        first.decoder(first.sequence, rows, cache=cache)
        answers.append(second.decoder(second.sequence, cache=cache, condition=second.condition))
    assert torch.equal(*answers)
