"""Named spans of rows: what dropping rows leaves where."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_node.nn.sequence import TokenSequence, lay_out

NAMES = ('bos', 'visual', 'proprio', 'prompt', 'actions')


def sequence_of(rows: dict[str, int], batch: int = 1) -> TokenSequence:
    """Each row's state is its position, so rows can be recognised."""
    positions = torch.arange(sum(rows.values())).expand(batch, -1)
    return TokenSequence(positions[..., None].float(), positions, lay_out(rows))


@st.composite
def layouts(draw):
    return {name: draw(st.integers(1, 6)) for name in NAMES}


@given(layouts())
def test_spans_follow_one_another_and_cover_all_rows(rows):
    sequence, start = sequence_of(rows), 0
    for name, count in rows.items():
        assert sequence.span(name) == slice(start, start + count)
        assert sequence.first(name) == start
        assert sequence.total(name) == count
        assert name in sequence
        start += count
    assert start == sequence.states.shape[1]


@given(layouts(), st.data())
def test_dropping_moves_no_row_into_another_span(rows, data):
    """After any drops, in any order of spans, each holds the rows it kept, at their places."""
    sequence = full = sequence_of(rows)
    left = {name: list(range(count)) for name, count in rows.items()}
    for name in data.draw(st.lists(st.sampled_from(NAMES), max_size=6)):
        places = sorted(data.draw(st.sets(
            st.integers(0, len(left[name]) - 1), min_size=1) if left[name] else st.just(set())))
        sequence = sequence.keep(name, torch.tensor(places, dtype=torch.int64))
        left[name] = [left[name][place] for place in places]
    for name in NAMES:
        expected = [full.first(name) + row for row in left[name]]
        assert sequence.positions[0, sequence.span(name)].tolist() == expected
        assert sequence.states[0, sequence.span(name), 0].tolist() == expected
        assert sequence.tokens(name).tolist() == left[name]
        assert sequence.total(name) == rows[name]
        assert sequence.first(name) == full.first(name)


@given(layouts(), st.data())
def test_a_bias_reaches_only_the_kept_rows_of_its_span(rows, data):
    sequence = sequence_of(rows)
    name = data.draw(st.sampled_from(NAMES))
    kept = torch.arange(0, rows[name], 2)
    pruned = sequence.keep(name, kept, torch.full((len(kept),), -torch.inf))
    hidden = torch.zeros(pruned.positions.shape[1], dtype=torch.bool)
    hidden[pruned.span(name)] = True
    assert torch.equal(pruned.key_bias[0].isneginf(), hidden)


def test_states_of_one_span_are_replaced_alone():
    sequence = sequence_of({'bos': 1, 'visual': 3, 'prompt': 2})
    changed = sequence.with_states('visual', -torch.ones(1, 3, 1))
    assert changed.states[0, :, 0].tolist() == [0, -1, -1, -1, 4, 5]
    assert changed.spans == sequence.spans


def test_a_span_that_is_not_there_is_named():
    sequence = sequence_of({'bos': 1, 'visual': 3})
    assert 'stop' not in sequence
    with pytest.raises(KeyError, match="no span 'stop'"):
        sequence.span('stop')


def test_rows_that_are_missing_from_the_start_are_counted():
    """Training may show the encoders some patches only; tokens keep the names they had."""
    spans = lay_out({'bos': 1, 'visual': 2, 'prompt': 1}, {'visual': 8})
    sequence = TokenSequence(torch.zeros(1, 4, 2), torch.tensor([[0, 3, 7, 9]]), spans)
    assert sequence.visual_tokens.tolist() == [2, 6]
    assert sequence.visual_total == 8
    assert sequence.first('prompt') == 9
