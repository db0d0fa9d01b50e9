"""Recordings of SmolVLA: its language model, and the expert's layers that attend to themselves.

Every second layer of the action expert reads the language model's keys and values through
projections of its own instead; there is no such layer in `nn` yet, so the others are compared one
by one, each from its recorded input. Recorded are the rows that enter the language model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.reading import read_json
from vla_policy_node.checks.findings import Comparison, compare, exact
from vla_policy_node.checks.golden_decoders import (
    FLOAT,
    Case,
    LayerInputs,
    Watch,
    allowed,
    make_decoder,
    padded_sequence,
    read_part,
    sizes_of,
)
from vla_policy_node.nn.kv_cache import KvCache
from vla_policy_node.nn.masks import Visibility, make_mask
from vla_policy_node.nn.sequence import TokenSequence
from vla_policy_node.nn.transformer import ALL_ROWS, Decoder, Place, Rope

PUBLIC_HEADS = 15  # of SmolVLM2-500M
VISIBILITY = Visibility(later=(('state',), ('actions',)), causal=(2,))
EPS = 1e-5
_ROOT = 'model.vlm_with_expert.'
_TEXT = {f'{_ROOT}vlm.model.text_model.': ''}
_EXPERT = {f'{_ROOT}lm_expert.': ''}


def is_recording(recording: Mapping[str, np.ndarray]) -> bool:
    """Whether these arrays are of an inference of SmolVLA, from the rows of the pictures on."""
    return recording.keys() >= {'image0_connector', 'state_embedding', 'prefix_embs'}


class SmolVlaDecoders:
    """The language model of a checkpoint, and those layers of its expert; in float32."""

    def __init__(self, directory: Path, device: str):
        text, expert = (read_part(directory, names) for names in (_TEXT, _EXPERT))
        config = Entries(read_json(directory / 'config.json'), 'config.json')
        self.every = config.integer('self_attn_every_n_layers', 1, 1000, 2)
        heads = _heads(directory)
        sizes = sizes_of(text, heads)
        self.language = make_decoder(
            text, replace(sizes, norm_eps=EPS, embedding_scale=sizes.width**0.5), VISIBILITY,
            device)
        self.expert = _self_attending(expert, heads, self.every, device)


def _heads(directory: Path) -> int:
    """Query heads, which neither shapes nor config.json tell: of the backbone beside it."""
    path = directory.parent / 'vlm_backbone' / 'config.json'
    if not path.is_file():
        return PUBLIC_HEADS
    entries = Entries(read_json(path), str(path))
    return entries.inside('text_config').integer('num_attention_heads', 1, 1000)


def _self_attending(
    tensors: Mapping[str, Tensor], heads: int, every: int, device: str
) -> Decoder:
    """A decoder of the layers that attend to themselves, in their order."""
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        _, _, rest = name.partition('layers.')
        index, _, inner = rest.partition('.')
        if not index.isdecimal():
            own[name] = tensor
        elif int(index) % every == 0:
            own[f'layers.{int(index) // every}.{inner}'] = tensor
    return make_decoder(own, replace(sizes_of(own, heads), norm_eps=EPS), VISIBILITY, device)


@torch.inference_mode()
def compare_case(decoders: SmolVlaDecoders, case: Case) -> Iterator[Comparison]:
    """One inference: the prefix through the language model, then layers of the expert."""
    language = decoders.language
    words = language.embed_words(case['lang_tokens'])
    yield from case.compare('embeddings of the words', FLOAT, words, 'lang_embedding_scaled')
    cameras = [case[key] for key in _numbered('image{}_connector', case)]
    visual = torch.cat(cameras, dim=1) * language.config.embedding_scale
    masks = [case[key] for key in _numbered('image{}_mask', case)]
    valid = torch.cat([
        *(mask[:, None].expand(-1, rows.shape[1])
          for mask, rows in zip(masks, cameras, strict=True)),
        case['lang_mask'], masks[0].new_ones(len(words), 1)], dim=1)
    state = case['state_embedding'][:, None]
    prefix = padded_sequence({'visual': visual, 'prompt': words, 'state': state}, valid)
    cache = KvCache(room=case['noise'].shape[1])
    yield from _compare_prefix(language, prefix, valid, cache, case)
    if 'suffix_layer_inputs_step0' in case:
        yield from _compare_layers(decoders, valid, cache, case)


def _compare_prefix(
    decoder: Decoder, prefix: TokenSequence, valid: Tensor, cache: KvCache, case: Case
) -> Iterator[Comparison]:
    yield from case.compare('prefix: rows', FLOAT, prefix.states, 'prefix_embs')
    yield from case.compare('prefix: rows that count', exact, valid, 'prefix_pad_mask')
    yield from case.compare(
        'prefix: positions', exact, prefix.positions, 'prefix_position_ids')
    seen = allowed([prefix], valid, VISIBILITY)
    yield from case.compare('prefix: who sees whom', exact, seen, 'prefix_att_2d')
    watch, rows = Watch(), valid[..., None]
    with LayerInputs(decoder) as inputs:
        states = decoder(prefix, hooks=watch, cache=cache)
    yield from case.compare(
        'prefix: every layer', FLOAT, inputs.states, 'prefix_layer_inputs', rows)
    for name, parts in (('keys', watch.keys), ('values', watch.values)):
        made = torch.stack(parts).transpose(2, 3)
        yield from case.compare(
            f'prefix: cached {name}', FLOAT, made, f'prefix_{name}', rows[..., None])
    yield from case.compare('prefix: last states', FLOAT, states, 'prefix_last_hidden', rows)


def _compare_layers(
    decoders: SmolVlaDecoders, valid: Tensor, cache: KvCache, case: Case
) -> Iterator[Comparison]:
    """Each layer that attends to itself, from its recorded input to that of the next one."""
    inputs, expert = case['suffix_layer_inputs_step0'], decoders.expert
    for own, layer in enumerate(expert.layers):
        index = own * decoders.every
        if index + 1 >= len(inputs):
            continue
        rows = inputs[index]
        sequence = padded_sequence(
            {'actions': rows}, valid.new_ones(rows.shape[:2]), after=valid.sum(dim=1))
        place = Place(index, sequence, VISIBILITY, cache=cache)
        rope = Rope.of(expert.config, sequence.positions, rows.dtype)
        made = layer(rows, rope, make_mask(sequence, VISIBILITY), ALL_ROWS, place)
        yield compare('expert: layers that attend to themselves', FLOAT, made,
                      inputs[index + 1], case.name)
        yield from case.compare(
            'expert: positions', exact, sequence.positions, 'suffix_position_ids')


def _numbered(form: str, case: Case) -> Iterator[str]:
    """Names of this form that were recorded, from 0 on."""
    index = 0
    while (name := form.format(index)) in case:
        yield name
        index += 1


load = SmolVlaDecoders
