"""Masks equal their definition, row by row and key by key."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_node.nn.masks import (
    BIDIRECTIONAL,
    CAUSAL,
    Visibility,
    make_mask,
    with_appended,
    with_past,
)
from vla_policy_node.nn.sequence import TokenSequence, lay_out

ROWS = {'visual': 3, 'prompt': 2, 'state': 1, 'actions': 4}
PI0 = Visibility(later=(('state',), ('actions',)))
SMOLVLA = Visibility(later=(('state',), ('actions',)), causal=(2,))
FAST = Visibility(later=(('state', 'actions'),), causal=(1,))
DESCRIPTIONS = {
    'bidirectional': BIDIRECTIONAL, 'causal': CAUSAL, 'pi0': PI0, 'smolvla': SMOLVLA, 'fast': FAST}


def sequence_of(positions, key_bias=None, rows=ROWS):
    positions = torch.as_tensor(positions)[None]
    states = torch.zeros(*positions.shape, 4)
    return TokenSequence(states, positions, lay_out(rows), key_bias)


def names_of(sequence):
    return [span.name for span in sequence.spans for _ in range(span.rows)]


def sees(visibility, sequence, row, key):
    """The definition: an earlier block, or the own one, there up to one's position if causal."""
    names, places = names_of(sequence), sequence.positions[0]
    mine, other = visibility.block(names[row]), visibility.block(names[key])
    if mine in visibility.causal and mine == other:
        return bool(places[key] <= places[row])
    return other <= mine


@pytest.mark.parametrize('name', DESCRIPTIONS)
@given(kept=st.sets(st.integers(0, 2)), hidden=st.sets(st.integers(0, 9)))
def test_a_mask_is_its_definition_after_rows_are_dropped_and_others_hidden(name, kept, hidden):
    visibility, bias = DESCRIPTIONS[name], torch.zeros(1, 10)
    bias[0, sorted(hidden)] = -torch.inf
    sequence = sequence_of(range(10), bias).keep(
        'visual', torch.tensor(sorted(kept), dtype=torch.int64))
    rows = sequence.states.shape[1]
    mask = make_mask(sequence, visibility).expand(1, 1, rows, rows)[0, 0]
    for row in range(rows):
        for key in range(rows):
            seen = sees(visibility, sequence, row, key)
            seen = seen and not sequence.key_bias[0, key].isneginf()
            assert mask[row, key] == (0 if seen else -torch.inf)


def test_where_nothing_is_hidden_there_is_no_mask():
    assert make_mask(sequence_of(range(10)), BIDIRECTIONAL) is None
    alone = sequence_of([7], rows={'actions': 1})
    assert make_mask(alone, CAUSAL) is None


@pytest.mark.parametrize('visibility', [CAUSAL, PI0], ids=['causal', 'pi0'])
@given(gone=st.sets(st.integers(0, 2), min_size=1, max_size=2))
def test_appended_keys_are_seen_as_if_their_rows_were_there(visibility, gone):
    """What a mask hides of rows that left the sequence is what it hid of them before."""
    full = sequence_of(range(10))
    left = sorted({0, 1, 2} - gone)
    sequence = full.keep('visual', torch.tensor(left))
    positions = torch.tensor(sorted(gone))[None]
    mask = with_appended(make_mask(sequence, visibility), sequence, 10, positions, visibility)
    keys = torch.cat([sequence.positions[0], positions[0]])
    expected = make_mask(full, visibility)[0, 0][sequence.positions[0]][:, keys]
    assert torch.equal(mask[0, 0], expected)


def test_appended_keys_need_positions_where_not_all_rows_see_all():
    sequence = sequence_of(range(10))
    with pytest.raises(ValueError, match='need positions in a causal language model'):
        with_appended(make_mask(sequence, CAUSAL), sequence, 12, None, CAUSAL)
    assert with_appended(None, sequence, 12, None, BIDIRECTIONAL) is None


@given(st.sets(st.integers(0, 3)), st.booleans())
def test_all_rows_see_the_past_but_for_what_its_bias_hides(hidden, masked):
    own = make_mask(sequence_of(range(10)), CAUSAL) if masked else None
    bias = torch.zeros(1, 4)
    bias[0, sorted(hidden)] = -torch.inf
    mask = with_past(own, torch.zeros(1, 2, 14, 8), 4, bias)
    assert torch.equal(mask[0, 0, :, :4], bias.expand(mask.shape[2], -1))
    expected = own[0, 0] if masked else torch.zeros(1, 10)
    assert torch.equal(mask[0, 0, :, 4:], expected)


def test_without_a_past_or_anything_to_hide_the_mask_stays():
    own = make_mask(sequence_of(range(10)), CAUSAL)
    assert with_past(own, torch.zeros(1, 2, 10, 8), 0, None) is own
    assert with_past(None, torch.zeros(1, 2, 14, 8), 4, None) is None
