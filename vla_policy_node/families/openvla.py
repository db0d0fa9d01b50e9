"""OpenVLA before OFT: one camera, seven tokens one after the other (Kim et al. 2024, 2406.09246).

The baseline of every published table. Unlike OpenVLA-OFT it is causal: a row sees itself and what
is before it, so keys and values of the prompt are computed once and kept. Methods work on that
first pass; the tokens that follow run the layers that it ran and see, in each, the rows it kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from vla_policy_node.checkpoints.adapter import adapter_in
from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.reading import shown
from vla_policy_node.families.prismatic import (
    PrismaticVla,
    VocabularyAnswers,
    vision_flops,
    with_film,
)
from vla_policy_node.families.prismatic_config import PrismaticConfig
from vla_policy_node.nn.capabilities import HOOKED, Capability
from vla_policy_node.nn.config import FamilyTraits
from vla_policy_node.nn.flops import LayerRows, decoder_flops, layer_flops
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.kv_cache import KvCache
from vla_policy_node.nn.sequence import TokenSequence, lay_out

PRETRAINING_SET = 'bridge_orig'  # one of the many of openvla/openvla-7b


class Prompted(NamedTuple):
    """What the prompt leaves behind.

    state: of its last row, [1, 1, width]. position: of that row, [1, 1]. cache: of all rows.
    """

    state: Tensor
    position: Tensor
    cache: KvCache


class OpenVla(PrismaticVla):
    """The trunk of `PrismaticVla`, read out token by token."""

    def assemble(
        self, visual: Tensor, proprio: Tensor, prompt_ids: Tensor, padded: bool | None = None
    ) -> TokenSequence:
        """Lay out bos | visual | prompt; proprio is not used."""
        text = self.language_model.embed_words(prompt_ids)
        rows = {'bos': text[:, :1], 'visual': visual, 'prompt': text[:, 1:]}
        return TokenSequence.of(rows)

    def prefill(self, sequence: TokenSequence, forward_pass: ForwardPass) -> Prompted:
        """Select tokens and run the prompt, batch 1; in this pass the hooks have their turn."""
        sequence = forward_pass.select_tokens(sequence)
        forward_pass.mark('select')
        cache = KvCache(room=self.config.action_size - 1)
        states = self.language_model(
            sequence, slice(-1, None), self.hooks(forward_pass), cache)
        return Prompted(states, sequence.positions[:, -1:], cache)

    def decode(self, context: Prompted, forward_pass: ForwardPass) -> Tensor:
        """A token for each number, one after the other, [1, A] int64."""
        ids = self.generate(context)
        forward_pass.mark('language_model')
        return ids

    def to_actions(self, decoded: Tensor) -> Tensor:
        """Tokens -> normalised actions [1, 1, A]; ValueError if they are other words."""
        return self.action_head.decode(decoded)

    def generate(self, context: Prompted) -> Tensor:
        """The A likeliest tokens, greedily, [1, A] int64."""
        states, position, cache = context
        ids = [self.action_head.token_ids(states[:, -1])]
        for step in range(1, self.config.action_size):
            row = TokenSequence(
                self.language_model.embed_words(ids[-1].clamp(min=0))[:, None], position + step,
                lay_out({'actions': 1}))
            states = self.language_model(row, cache=cache)
            ids.append(self.action_head.token_ids(states[:, -1]))
        return torch.stack(ids, dim=1)


class OpenVlaFamily(VocabularyAnswers):
    """One camera, no proprio, one action per inference; sizes of nothing else tell."""

    traits = FamilyTraits(
        'autoregressive', 'OpenVLA', 'autoregressive, one camera',
        HOOKED - {Capability.ONE_PASS} | {Capability.TOKENS, Capability.FUSED}, end_rows=0,
        causal=True)
    network = OpenVla
    settled: ClassVar = {'cameras': 'OpenVLA has one', 'proprio': 'OpenVLA has none',
                         'chunk': 'OpenVLA answers one', 'action rows': 'one after the other'}

    taken_for = ('a discrete OpenVLA-OFT with one camera has the same files and needs "head": '
                 '"discrete" in its config.json, and vla check tries both')

    def recognises_parts(self, directory: Path, parts: Collection[str]) -> bool:
        """By its having nothing beside the language model."""
        return not {'action_head', 'proprio_projector', 'noisy_action_projector'} & set(parts)

    def read_config(
        self, directory: Path, document: Mapping, parts: Collection[str]
    ) -> PrismaticConfig:
        """One camera, no proprio, no chunk; ValueError where config.json says something else."""
        self._refuse_others(document)
        config = self.config_of({**self.stored_sizes(directory), **document})
        spec = replace(config.spec, cameras=config.spec.cameras[:1], state=())
        config = replace(config, spec=spec, chunk_length=1)
        if 'center_crop' not in document and _is_pretrained(directory, document):
            config = replace(config, center_crop=False)
        return with_film(config, parts)

    @staticmethod
    def _refuse_others(document: Mapping) -> None:
        """Raise ValueError for entries that only another kind of policy can have."""
        cameras = document.get('cameras')
        other = {
            'cameras': cameras is not None and (
                len(cameras) if isinstance(cameras, list) else cameras) != 1,
            'chunk_length': document.get('chunk_length') not in (None, 1),
            'proprio': document.get('proprio') is True,
            'state': bool(document.get('state'))}
        for key in filter(other.__getitem__, other):
            raise ValueError(
                f'config.json has {key} {shown(document[key])}; an OpenVLA sees one camera and '
                'no state and answers with one action; a discrete OpenVLA-OFT needs "head": '
                f'"discrete" there, and for an OpenVLA remove {key}.')

    def sequence_rows(self, config: PrismaticConfig, prompt_ids: int) -> int:
        """Those of the first pass; tokens come one after the other behind it."""
        return prompt_ids + config.visual_tokens

    def count_flops(
        self,
        config: PrismaticConfig,
        layer_rows: Sequence[int] | Sequence[LayerRows],
        denoising_reused: int = 0,
    ) -> dict[str, int]:
        """Keys and values are kept: the prompt, then one row after the other.

        layer_rows: of the pass over the prompt; the tokens that follow run the same layers and see
        what was seen there.
        """
        model = config.language_model
        kept = [rows.seen if isinstance(rows, LayerRows) else rows for rows in layer_rows]
        steps = sum(layer_flops(model, LayerRows(1, 1, rows + step))
                    for rows in kept for step in range(1, config.action_size))
        return {
            'vision': vision_flops(config),
            'language_model': decoder_flops(model, layer_rows, 1) + steps,
            'head': self.head_flops(config),
        }


def _is_pretrained(directory: Path, document: Mapping) -> bool:
    """Whether OpenVLA is as its pre-training left it, which saw no random crops.

    Its authors forbid the centre crop then (openvla/openvla, run_bridgev2_eval.py) and demand it
    of what was fine-tuned with random crops (run_libero_eval.py).
    """
    fine_tuned = (directory / 'dataset_statistics.json').is_file() or adapter_in(directory)
    entries = Entries(document, 'config.json')
    return not fine_tuned and PRETRAINING_SET in entries.inside('norm_stats', {})
