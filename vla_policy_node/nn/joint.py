"""Decoders that share their attention: a language model and its action expert in one pass.

Each keeps its own weights and width; in every layer the rows of all see the keys of all, as far as
the mask allows. It is what `Decoder.forward` computes with a cache, prefix first, in a form that
gradients flow through. The decoders have as many layers, heads and head widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vla_policy_node.nn.masks import Visibility, make_mask
from vla_policy_node.nn.norms import apply_norm
from vla_policy_node.nn.sequence import TokenSequence
from vla_policy_node.nn.transformer import ALL_ROWS, Decoder, DecoderLayer, Rope, attend, gated


class Stream(NamedTuple):
    """One decoder and its rows; condition: [B, condition width], where its norms are adaptive."""

    decoder: Decoder
    sequence: TokenSequence
    condition: Tensor | None = None


def joint_forward(streams: Sequence[Stream], visibility: Visibility) -> list[Tensor]:
    """Return the hidden states of each stream after its final norm, [B, its rows, its width].

    Positions are those of the whole sequence, in which the streams follow each other.
    """
    mask = make_mask(_together([stream.sequence for stream in streams]), visibility)
    ropes = [
        Rope.of(decoder.config, sequence.positions, sequence.states.dtype)
        for decoder, sequence, _ in streams]
    states = [stream.sequence.states for stream in streams]
    for layers in zip(*(stream.decoder.layers for stream in streams), strict=True):
        states = _joint_layer(layers, streams, states, ropes, mask)
    return [
        apply_norm(decoder.norm, rows, condition)[0]
        for (decoder, _, condition), rows in zip(streams, states, strict=True)]


def _joint_layer(
    layers: Sequence[DecoderLayer],
    streams: Sequence[Stream],
    states: Sequence[Tensor],
    ropes: Sequence[Rope],
    mask: Tensor | None,
) -> list[Tensor]:
    projected, gates = [], []
    for layer, stream, rows, rope in zip(layers, streams, states, ropes, strict=True):
        normed, gate = apply_norm(layer.input_layernorm, rows, stream.condition)
        projected.append(layer.self_attn.project(normed, rope, ALL_ROWS))
        gates.append(gate)
    query, key, value = (torch.cat(parts, dim=2) for parts in zip(*projected, strict=True))
    mixed = attend(query, key, value, mask).split([rows.shape[1] for rows in states], dim=1)
    done = []
    for layer, stream, rows, part, gate in zip(layers, streams, states, mixed, gates, strict=True):
        rows, added = layer.feed(
            rows + gated(layer.self_attn.o_proj(part), gate), stream.condition)
        done.append(rows + added)
    return done


def _together(sequences: Sequence[TokenSequence]) -> TokenSequence:
    """One sequence of them all, for its mask; states of different widths have none in common."""
    biases = [
        sequence.positions.new_zeros(sequence.positions.shape, dtype=torch.float32)
        if sequence.key_bias is None else sequence.key_bias for sequence in sequences]
    hidden = any(sequence.key_bias is not None for sequence in sequences)
    return TokenSequence(
        torch.cat([sequence.states[..., :0] for sequence in sequences], dim=1),
        torch.cat([sequence.positions for sequence in sequences], dim=1),
        tuple(span for sequence in sequences for span in sequence.spans),
        torch.cat(biases, dim=1) if hidden else None)
