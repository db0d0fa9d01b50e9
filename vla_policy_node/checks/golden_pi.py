"""Recordings of pi0 and pi0.5: what the two decoders compute with shared attention.

A Gemma reads pictures and words, an action expert of another width reads its keys and values; in
pi0.5 the flow's time modulates the expert's norms (adaRMS). Recorded are the rows that enter
either of them, so neither vision encoder nor action projections are needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

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
from vla_policy_node.nn.joint import Stream, joint_forward
from vla_policy_node.nn.kv_cache import KvCache
from vla_policy_node.nn.masks import Visibility
from vla_policy_node.nn.norms import AdaptiveRmsNorm
from vla_policy_node.nn.sequence import TokenSequence
from vla_policy_node.nn.transformer import Decoder, DecoderConfig

HEADS = 8  # of both decoders, in every published size
VISIBILITY = Visibility(later=(('state',), ('actions',)))
_ROOT = 'paligemma_with_expert.'
_LANGUAGE = {
    f'{_ROOT}paligemma.model.language_model.': '',
    f'{_ROOT}paligemma.lm_head.': 'embed_tokens.',  # one table for both
}
_EXPERT = {f'{_ROOT}gemma_expert.model.': ''}


def is_recording(recording: Mapping[str, np.ndarray]) -> bool:
    """Whether these arrays are of an inference of pi0 or pi0.5."""
    return recording.keys() >= {'image_embeds', 'lang_tokens', 'suffix_embs', 'suffix_out'}


class PiDecoders:
    """The language model and the action expert of a checkpoint, in float32."""

    def __init__(self, directory: Path, device: str):
        language, expert = (read_part(directory, names) for names in (_LANGUAGE, _EXPERT))
        condition = expert.get('norm.dense.weight')
        sizes, others = sizes_of(language, HEADS), sizes_of(expert, HEADS)
        self.language = make_decoder(
            language, replace(_gemma(sizes), embedding_scale=sizes.width**0.5), VISIBILITY, device)
        self.expert = make_decoder(
            expert, replace(_gemma(others), condition_width=(
                0 if condition is None else condition.shape[1])), VISIBILITY, device)

    @property
    def adaptive(self) -> bool:
        """Whether a condition modulates the expert's norms, as in pi0.5."""
        return self.expert.config.condition_width > 0


def _gemma(sizes: DecoderConfig) -> DecoderConfig:
    return replace(sizes, activation='gelu_tanh', norm_offset=True)


@torch.inference_mode()
def compare_case(decoders: PiDecoders, case: Case) -> Iterator[Comparison]:
    """One inference: prefix, every recorded step of the flow, and both decoders in one pass."""
    visual, words = case['image_embeds'], decoders.language.embed_words(case['lang_tokens'])
    yield from case.compare('embeddings of the words', FLOAT, words, 'lang_embeds')
    cameras = case['image_masks'].repeat_interleave(visual.shape[2], dim=1)
    valid = torch.cat([cameras, case['lang_masks']], dim=1)
    prefix = padded_sequence({'visual': visual.flatten(1, 2), 'prompt': words}, valid)
    cache = KvCache(room=case['suffix_embs'].shape[2])
    yield from _compare_prefix(decoders.language, prefix, valid, cache, case)
    yield from _compare_steps(decoders, prefix, valid, cache, case)
    if decoders.adaptive:
        yield from _compare_modulations(decoders.expert, case['adarms_cond'], case)


def _compare_prefix(
    decoder: Decoder, prefix: TokenSequence, valid: Tensor, cache: KvCache, case: Case
) -> Iterator[Comparison]:
    yield from case.compare('prefix: rows that count', exact, valid, 'prefix_pad_masks')
    yield from case.compare('prefix: positions', exact, prefix.positions, 'prefix_position_ids')
    seen = allowed([prefix], valid, VISIBILITY)
    yield from case.compare('prefix: who sees whom', exact, seen, 'prefix_att_2d')
    watch, rows = Watch(), valid[..., None]
    with LayerInputs(decoder) as inputs:
        decoder(prefix, hooks=watch, cache=cache)
    if 'prefix_layer_in' in case:  # of all layers, or of the last ones
        states = inputs.states[-len(case['prefix_layer_in']):]
        yield from case.compare('prefix: every layer', FLOAT, states, 'prefix_layer_in', rows)
    for name, parts in (('k', watch.keys), ('v', watch.values)):
        stage, made = f'prefix: cached {name}', torch.stack(parts)[:, :, 0]
        yield from case.compare(stage, FLOAT, made, f'prefix_{name}', rows)
        yield from case.compare(stage, FLOAT, made[..., :8], f'prefix_{name}_first8', rows)
        yield from case.compare(stage, FLOAT, made.norm(dim=-1), f'prefix_{name}_norm', valid)


def _compare_steps(
    decoders: PiDecoders, prefix: TokenSequence, valid: Tensor, cache: KvCache, case: Case
) -> Iterator[Comparison]:
    """The expert with the cache in each step, and in the first one also without."""
    lengths, outputs, embedded = cache.lengths(), [], case['suffix_embs']
    reference = case['suffix_out']
    states = case['adarms_cond'][case['kept_steps']] if decoders.adaptive else None
    for index, rows in enumerate(embedded):
        suffix = _suffix(rows, valid, decoders.adaptive)
        condition = None if states is None else states[index]
        with LayerInputs(decoders.expert) as inputs:
            outputs.append(decoders.expert(suffix, cache=cache, condition=condition))
        cache.crop(lengths)
        if index:
            continue
        yield from case.compare('expert: positions', exact, suffix.positions,
                                'suffix_position_ids')
        everyone = torch.cat([valid, valid.new_ones(rows.shape[:2])], dim=1)
        seen = allowed([prefix, suffix], everyone, VISIBILITY)[:, valid.shape[1]:]
        yield from case.compare('expert: who sees whom', exact, seen, 'suffix_att_2d')
        if case['kept_steps'][0] == 0:
            yield from case.compare(
                'expert: every layer', FLOAT, inputs.states, 'expert_layer_in_step0')
        together = joint_forward([
            Stream(decoders.language, prefix), Stream(decoders.expert, suffix, condition)],
            VISIBILITY)[1]
        yield compare('both decoders in one pass', FLOAT, together, reference[0], case.name)
    yield compare('expert: last states', FLOAT, torch.stack(outputs), reference, case.name)


def _suffix(rows: Tensor, valid: Tensor, adaptive: bool) -> TokenSequence:
    """Rows of the expert behind a prefix; pi0.5 has none for the state."""
    spans = {'actions': rows} if adaptive else {'state': rows[:, :1], 'actions': rows[:, 1:]}
    return padded_sequence(spans, valid.new_ones(rows.shape[:2]), after=valid.sum(dim=1))


def _compare_modulations(
    expert: Decoder, conditions: Tensor, case: Case
) -> Iterator[Comparison]:
    """Scale, shift and gate of some norms in all steps, of the first batch element."""
    last = len(expert.layers) - 1
    for key, norm in (
        ('mod_in_0', expert.layers[0].input_layernorm),
        (f'mod_post_{last}', expert.layers[last].post_attention_layernorm),
        ('mod_final', expert.norm),
    ):
        assert isinstance(norm, AdaptiveRmsNorm)
        yield from case.compare('adaptive norms', FLOAT, norm.dense(conditions[:, 0]), key)


load = PiDecoders
