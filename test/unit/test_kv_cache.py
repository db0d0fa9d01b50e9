"""A cache changes no state: whatever was dropped, at whatever layer, whatever came in pieces."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_policy_node.nn.hooks import LayerHooks
from vla_policy_node.nn.kv_cache import KvCache
from vla_policy_node.nn.masks import CAUSAL, Visibility
from vla_policy_node.nn.sequence import TokenSequence, lay_out
from vla_policy_node.nn.transformer import Decoder, DecoderConfig

LAYERS, VISUAL, PROMPT, TOKENS = 3, 6, 3, 4
PREFIX = 1 + VISUAL + PROMPT
SMALL = DecoderConfig(
    width=16, layers=LAYERS, heads=4, mlp_width=24, vocabulary=0, key_heads=2, norm_eps=1e-5)
PREFIX_LM = Visibility(later=(('actions',),), causal=(1,))


class Drop(LayerHooks):
    """Drops or hides visual tokens before layers; skips some of these."""

    def __init__(self, kept, run=range(LAYERS), hide=False):
        self.kept, self.run, self.hide = kept, run, hide

    def select_layers(self, sequence, layers):
        return [index for index in layers if index in self.run]

    def before_layer(self, index, sequence):
        return prune(sequence, self.kept[index], self.hide)


def prune(sequence, kept, hide):
    """Leave only these visual tokens, of those that are left."""
    tokens = sequence.visual_tokens
    stay = torch.isin(tokens, torch.tensor(sorted(kept), dtype=torch.int64))
    if not hide:
        return sequence.keep_visual(stay.nonzero().flatten())
    bias = torch.zeros(sequence.positions.shape)
    bias[:, sequence.span('visual')].masked_fill_(~stay, -torch.inf)
    return replace(sequence, key_bias=bias)


def decoder(visibility, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Decoder(SMALL, visibility).double().requires_grad_(False)


def sequence_of(generator, tokens=0, padding=0):
    """The whole sequence; padding: words at its start that only fill up."""
    rows = {'bos': 1, 'visual': VISUAL, 'prompt': PROMPT, 'actions': tokens}
    total = PREFIX + tokens
    states = torch.randn(1, total, SMALL.width, generator=generator, dtype=torch.float64)
    bias = None
    if padding:
        bias = torch.zeros(1, total)
        bias[:, 1 + VISUAL : 1 + VISUAL + padding] = -torch.inf
    return TokenSequence(states, torch.arange(total)[None], lay_out(rows), bias)


def cut(sequence, rows, name):
    count = len(range(*rows.indices(sequence.states.shape[1])))
    bias = None if sequence.key_bias is None else sequence.key_bias[:, rows]
    spans = lay_out({'bos': 1, 'visual': VISUAL, 'prompt': PROMPT}) if name == 'prompt' else (
        lay_out({name: count}))
    return TokenSequence(sequence.states[:, rows], sequence.positions[:, rows], spans, bias)


@st.composite
def patterns(draw):
    """Visual tokens left in each layer, never more than in the layer before."""
    kept, patterns = set(range(VISUAL)), []
    for _ in range(LAYERS):
        kept = draw(st.sets(st.sampled_from(sorted(kept)), max_size=len(kept))) if kept else kept
        patterns.append(kept)
    return patterns


@pytest.mark.parametrize('visibility', [CAUSAL, PREFIX_LM], ids=['causal', 'prefix LM'])
@settings(deadline=None)
@given(kept=patterns(), run=st.sets(st.integers(0, LAYERS - 1)), seed=st.integers(0, 2**31),
       pieces=st.lists(st.integers(1, TOKENS), min_size=1, max_size=TOKENS),
       padding=st.integers(0, 2), room=st.integers(0, 5))
def test_in_pieces_with_a_cache_are_the_states_of_one_pass(
    visibility, kept, run, seed, pieces, padding, room
):
    """For any pruning, any layers left out, any cut of what follows, any room for it."""
    generator = torch.Generator().manual_seed(seed)
    run = sorted({*run, LAYERS - 1})
    model = decoder(visibility, seed % 7)
    whole = prune(sequence_of(generator, TOKENS, padding), kept[0], hide=False)
    full = sequence_of(torch.Generator().manual_seed(seed), TOKENS, padding)
    expected = model(whole, slice(-TOKENS, None), Drop(kept, run))

    cache, made, start = KvCache(room), [], PREFIX
    prompt = prune(cut(full, slice(0, PREFIX), 'prompt'), kept[0], hide=False)
    model(prompt, slice(-1, None), Drop(kept, run), cache)
    assert cache.layers == tuple(run)
    for piece in [*pieces, *[1] * TOKENS]:
        rows = slice(start, min(start + piece, PREFIX + TOKENS))
        if rows.start < rows.stop:
            made.append(model(cut(full, rows, 'actions'), cache=cache))
            start = rows.stop
    torch.testing.assert_close(torch.cat(made, dim=1), expected, rtol=0, atol=1e-12)


@settings(deadline=None)
@given(kept=patterns(), seed=st.integers(0, 2**31))
def test_dropping_is_hiding_in_the_prompt_and_in_what_follows(kept, seed):
    made = {}
    for hide in (False, True):
        model, cache = decoder(CAUSAL, seed % 7), KvCache()
        full = sequence_of(torch.Generator().manual_seed(seed), TOKENS)
        prompt = prune(cut(full, slice(0, PREFIX), 'prompt'), kept[0], hide)
        states = model(prompt, slice(-1, None), Drop(kept, hide=hide), cache)
        made[hide] = torch.cat([states, *(
            model(cut(full, slice(row, row + 1), 'actions'), cache=cache)
            for row in range(PREFIX, PREFIX + TOKENS))], dim=1)
        if not hide:
            for index in range(LAYERS):
                assert cache.rows(index) == 1 + len(kept[index]) + PROMPT + TOKENS
                places = [0, *(1 + token for token in sorted(kept[index])),
                          *range(1 + VISUAL, PREFIX + TOKENS)]
                assert cache.positions(index)[0].tolist() == places
    torch.testing.assert_close(made[False], made[True], rtol=0, atol=1e-12)


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=6), room=st.integers(0, 9),
       biased=st.sets(st.integers(0, 5)), cropped=st.integers(0, 30))
def test_a_layer_holds_what_was_appended_and_not_taken_back(lengths, room, biased, cropped):
    generator = torch.Generator().manual_seed(len(lengths) + room)
    cache, keys, biases = KvCache(room), [], []
    for step, length in enumerate(lengths):
        key = torch.randn(2, 3, length, 4, generator=generator)
        bias = torch.full((2, length), float(step)) if step in biased else None
        place = torch.arange(length).expand(2, -1)
        seen, values = cache.append(7, key, key + 1, place, bias)
        keys.append(key)
        biases.append(torch.zeros(2, length) if bias is None else bias)
        assert torch.equal(seen, torch.cat(keys, dim=2))
        assert torch.equal(values, seen + 1)
    if biased & set(range(len(lengths))):
        assert torch.equal(cache.bias(7), torch.cat(biases, dim=1))
    else:
        assert cache.bias(7) is None
    cache.crop({7: cropped})
    assert cache.rows(7) == min(cropped, sum(lengths))
    more = torch.randn(2, 3, 1, 4, generator=generator)
    seen, _ = cache.append(7, more, more, torch.zeros(2, 1, dtype=torch.int64))
    expected = torch.cat([torch.cat(keys, dim=2)[:, :, :cropped], more], dim=2)
    assert torch.equal(seen, expected)
    cache.crop({})
    assert cache.layers == ()


def test_rows_taken_back_can_be_computed_again():
    """A denoising step reads its prefix, adds its own rows, and leaves the prefix as it was."""
    model, cache = decoder(PREFIX_LM), KvCache(room=TOKENS)
    full = sequence_of(torch.Generator().manual_seed(0), TOKENS)
    model(cut(full, slice(0, PREFIX), 'prompt'), slice(0, 0), cache=cache)
    prefix, actions = cache.lengths(), cut(full, slice(PREFIX, None), 'actions')
    first = model(actions, cache=cache)
    cache.crop(prefix)
    model(replace(actions, states=actions.states + 1), cache=cache)
    cache.crop(prefix)
    assert torch.equal(model(actions, cache=cache), first)
