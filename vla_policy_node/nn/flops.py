"""How much arithmetic an inference is, counted from sizes and rows instead of measured.

One convention for every figure of this project: a multiply-accumulate is two FLOPs, so a linear
layer from n to m costs 2 n m per row. Counted are matrix products, convolutions and
attention; norms, activations, rotary embeddings and table look-ups are not, as usual. Papers on
token pruning often print multiply-accumulates under the name of FLOPs, half of what is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from vla_policy_node.nn.config import DecoderConfig, VisionEncoderConfig


class LayerRows(NamedTuple):
    """Rows of one run of one layer: so many ask, have their keys made, and are attended to.

    layer: which one it is in the files, where that matters; -1 if nobody says.
    """

    asking: int
    new: int
    seen: int
    layer: int = -1


def encoder_flops(encoder: VisionEncoderConfig) -> int:
    """Return the FLOPs of one vision transformer on one image."""
    patches = encoder.grid[0] * encoder.grid[1]
    rows = patches + encoder.class_token + encoder.register_tokens
    width = encoder.width
    block = _block(rows, width, encoder.mlp_width)
    film = 2 * encoder.language_width * width
    return 2 * (patches * 3 * encoder.patch_px**2 * width + encoder.blocks * (block + film))


def decoder_flops(
    model: DecoderConfig, layer_rows: Sequence[int | LayerRows], read: int
) -> int:
    """Return the FLOPs of the layers that run; queries and MLP only for rows that ask.

    layer_rows: of each layer, one after the other. Numbers are the rows of the sequence where all
        layers run and all rows are seen, and only the `read` rows that the head reads ask in the
        last one.
    """
    full = [
        rows if isinstance(rows, LayerRows)
        else LayerRows(read if index % model.layers == model.layers - 1 else rows, rows, rows)
        for index, rows in enumerate(layer_rows)
    ]
    return sum(layer_flops(model, rows) for rows in full)


def chain_flops(*widths: int) -> int:
    """Return the FLOPs of linear layers one after the other, for one row."""
    return 2 * sum(a * b for a, b in pairwise(widths))


def layer_flops(model: DecoderConfig, rows: LayerRows) -> int:
    """Return the FLOPs of one layer of the language model."""
    return 2 * _layer(model, *rows[:3])


def block_flops(rows: int, width: int, mlp_width: int) -> int:
    """Return the FLOPs of a transformer block in which all rows see each other."""
    return 2 * _block(rows, width, mlp_width)


def _block(rows: int, width: int, mlp_width: int) -> int:
    """A transformer block in which all rows see each other."""
    return rows * (4 * width**2 + 2 * width * mlp_width) + 2 * rows**2 * width


def _layer(model: DecoderConfig, asking: int, new: int, seen: int) -> int:
    """One layer: `asking` rows look at `seen` ones, of which `new` have no keys and values yet."""
    width, queries, keys = model.width, model.query_width, model.key_width
    linear = 2 * width * (asking * queries + new * keys) + 3 * asking * width * model.mlp_width
    return linear + 2 * asking * seen * queries
