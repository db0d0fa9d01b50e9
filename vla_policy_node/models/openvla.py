"""OpenVLA before OFT: one camera, seven tokens one after the other (Kim et al. 2024, 2406.09246).

The baseline of every published table. Unlike OpenVLA-OFT it is causal: a row sees itself and what
is before it, so keys and values of the prompt are computed once and kept. Methods work on that
first pass; the tokens that follow run the layers that it ran and see, in each, the rows it kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vla_policy_node.models.config import ACTION_DIMENSION
from vla_policy_node.models.openvla_oft import OpenVlaOft
from vla_policy_node.nn.hooks import NO_HOOKS, HookChain, LayerHooks
from vla_policy_node.nn.kv_cache import KvCache
from vla_policy_node.nn.sequence import TokenSequence, lay_out

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vla_policy_node.nn.hooks import PassHooks


class OpenVla(OpenVlaOft):
    """The towers, projector and decoder of `OpenVlaOft`, read out token by token."""

    def forward(
        self,
        pixels: Tensor,
        proprio: Tensor,
        prompt_ids: Tensor,
        methods: Sequence[PassHooks] = (),
        action_rows: str = 'oft',
        mark: Callable[[str], None] = lambda stage: None,
    ) -> Tensor:
        """[1, 1, 6, H, W] and [1, L] -> normalised actions [1, 1, 7].

        proprio and action_rows mean nothing here; they are there to be called alike.
        """
        for method in methods:
            method.begin_pass()
        visual = self.visual(pixels, prompt_ids, methods)
        mark('vision')
        sequence = self.assemble(visual, proprio, prompt_ids)
        for method in methods:
            sequence = method.select_tokens(sequence)
        mark('select')
        ids = self.generate(sequence, HookChain(methods, self.act))
        mark('language_model')
        return self.action_head.decode(ids)

    def assemble(self, visual: Tensor, proprio: Tensor, prompt_ids: Tensor) -> TokenSequence:
        """Lay out bos | visual | prompt; proprio is not used."""
        text = self.language_model.embed(prompt_ids)
        rows = {'bos': text[:, :1], 'visual': visual, 'prompt': text[:, 1:]}
        states = torch.cat([*rows.values()], dim=1)
        positions = torch.arange(states.shape[1], device=states.device).expand(len(states), -1)
        return TokenSequence(
            states, positions, lay_out({name: part.shape[1] for name, part in rows.items()}))

    def generate(self, sequence: TokenSequence, hooks: LayerHooks = NO_HOOKS) -> Tensor:
        """The prompt's rows, batch 1 -> the seven likeliest tokens, greedily, [1, 7] int64.

        hooks: have their turn in the pass over the prompt.
        """
        cache = KvCache(room=ACTION_DIMENSION - 1)
        position = sequence.positions[:, -1:]
        states = self.language_model(sequence, slice(-1, None), hooks, cache)
        ids = [self.action_head.token_ids(states[:, -1])]
        for step in range(1, ACTION_DIMENSION):
            row = TokenSequence(
                self.language_model.embed(ids[-1].clamp(min=0))[:, None], position + step,
                lay_out({'actions': 1}))
            states = self.language_model(row, cache=cache)
            ids.append(self.action_head.token_ids(states[:, -1]))
        return torch.stack(ids, dim=1)
