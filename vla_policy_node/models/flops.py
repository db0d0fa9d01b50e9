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

from vla_policy_node.models.config import (
    ACTION_DIMENSION,
    PROPRIO_DIMENSION,
    STEP_WAVES,
    DecoderConfig,
    ModelConfig,
    TowerConfig,
)


class LayerRows(NamedTuple):
    """Rows of one run of one layer: so many ask, have their keys made, and are attended to."""

    asking: int
    new: int
    seen: int


def count_flops(
    config: ModelConfig,
    layer_rows: Sequence[int] | Sequence[LayerRows],
    denoising_reused: int = 0,
) -> dict[str, int]:
    """Return the FLOPs of one inference, batch 1, by stage.

    layer_rows: of each layer of the language model that runs, one after the other; a diffusion
        head runs all layers once per denoising step. Numbers are the rows of the sequence where
        all layers run and all rows are seen, and only the rows that the head reads ask in the
        last one. Token by token, they are those of the pass over the prompt; the tokens that
        follow run the same layers and see what was seen there.
    denoising_reused: steps of a CogACT head that reused what its blocks did in another one.
    Stages are 'vision' (towers, projector), 'language_model' (with what makes its rows) and
    'head'. What an acceleration method computes itself is in its `Report`.
    """
    features = config.dino.width + config.siglip.width
    width = config.language_model.width
    vision = config.cameras * (_tower(config.dino) + _tower(config.siglip))
    vision += config.visual_tokens * _chain(features, 4 * features, width, width)
    if config.head == 'autoregressive':
        decoder = _token_by_token(config.language_model, layer_rows)
        passes = 1
    else:
        decoder = _decoder(config.language_model, layer_rows, config.rows_read)
        passes = config.diffusion_steps if config.head == 'diffusion' else 1
    inputs = config.proprio * _chain(PROPRIO_DIMENSION, width, width)
    if config.head == 'diffusion':
        inputs += config.action_slots * _chain(1, width, width)
    macs = {
        'vision': vision,
        'language_model': decoder + passes * inputs,
        'head': passes * _head(config, denoising_reused),
    }
    return {stage: 2 * count for stage, count in macs.items()}


def sequence_rows(config: ModelConfig, prompt_ids: int) -> int:
    """Return the rows of a sequence from which nothing was dropped.

    prompt_ids: how many, with BOS. Token by token, these are the rows of the first pass.
    """
    others = 0 if config.head == 'autoregressive' else config.other_rows
    return prompt_ids + config.visual_tokens + others


def chain_flops(*widths: int) -> int:
    """Return the FLOPs of linear layers one after the other, for one row."""
    return 2 * _chain(*widths)


def layer_flops(model: DecoderConfig, rows: LayerRows) -> int:
    """Return the FLOPs of one layer of the language model."""
    return 2 * _layer(model, *rows)


def head_flops(config: ModelConfig) -> int:
    """Return the FLOPs of reading the actions out of hidden states once."""
    return 2 * _head(config, 0)


def _tower(tower: TowerConfig) -> int:
    """Multiply-accumulates of one vision transformer on one image."""
    patches = tower.grid[0] * tower.grid[1]
    rows = patches + tower.class_token + tower.register_tokens
    width = tower.width
    block = _block(rows, width, tower.mlp_width)
    film = 2 * tower.language_width * width
    return patches * 3 * tower.patch_px**2 * width + tower.blocks * (block + film)


def _block(rows: int, width: int, mlp_width: int) -> int:
    """A transformer block in which all rows see each other."""
    return rows * (4 * width**2 + 2 * width * mlp_width) + 2 * rows**2 * width


def _decoder(
    model: DecoderConfig, layer_rows: Sequence[int] | Sequence[LayerRows], read: int
) -> int:
    """Multiply-accumulates of the decoder layers; queries and MLP only for rows that ask."""
    full = [
        rows if isinstance(rows, LayerRows)
        else LayerRows(read if index % model.layers == model.layers - 1 else rows, rows, rows)
        for index, rows in enumerate(layer_rows)
    ]
    return sum(_layer(model, *rows) for rows in full)


def _token_by_token(
    model: DecoderConfig, layer_rows: Sequence[int] | Sequence[LayerRows]
) -> int:
    """The same with kept keys and values: the prompt, then one row after the other."""
    kept = [rows.seen if isinstance(rows, LayerRows) else rows for rows in layer_rows]
    steps = sum(
        _layer(model, 1, 1, rows + step)
        for rows in kept for step in range(1, ACTION_DIMENSION))
    return _decoder(model, layer_rows, 1) + steps


def _layer(model: DecoderConfig, asking: int, new: int, seen: int) -> int:
    """One layer: `asking` rows look at `seen` ones, of which `new` have no keys and values yet."""
    width, queries, keys = model.width, model.query_width, model.key_width
    linear = 2 * width * (asking * queries + new * keys) + 3 * asking * width * model.mlp_width
    return linear + 2 * asking * seen * queries


def _head(config: ModelConfig, denoising_reused: int) -> int:
    width = config.language_model.width
    if config.head == 'cogact':
        return _diffusion_transformer(config, denoising_reused)
    if config.head in ('discrete', 'autoregressive'):
        return config.action_slots * width * config.language_model.vocabulary
    return config.chunk_length * _chain(
        ACTION_DIMENSION * width, width, width, width, ACTION_DIMENSION)


def _diffusion_transformer(config: ModelConfig, reused: int) -> int:
    """All denoising steps; guidance doubles what comes after the embedded actions."""
    dit, rows = config.dit, config.chunk_length
    halves, width = 1 + (dit.guidance > 1), dit.width
    embedding = rows * _chain(ACTION_DIMENSION, width)
    last = halves * rows * _chain(width, ACTION_DIMENSION)
    blocks = dit.blocks * _block(1 + rows, width, dit.mlp_width)
    full = _chain(STEP_WAVES, width, width) + halves * blocks
    conditions = halves * _chain(config.language_model.width, width)
    steps = dit.denoising_steps
    return conditions + steps * (embedding + last) + (steps - reused) * full


def _chain(*widths: int) -> int:
    """Multiply-accumulates of linear layers one after the other, for one row."""
    return sum(a * b for a, b in pairwise(widths))
