"""OpenVLA before OFT: one camera, seven tokens one after the other (Kim et al. 2024, 2406.09246).

The baseline of every published table. Unlike OpenVLA-OFT it is causal: a row sees itself and what
is before it, so keys and values of the prompt are computed once and kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from vla_policy_node.models.config import ACTION_DIMENSION
from vla_policy_node.models.language_model import DecoderLayer, LanguageModel, Rope
from vla_policy_node.models.openvla_oft import OpenVlaOft

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

        proprio, methods and action_rows mean nothing here; they are there to be called alike.
        """
        visual = self.visual(pixels, prompt_ids)
        mark('vision')
        text = self.language_model.embed_tokens(prompt_ids)
        rows = torch.cat([text[:, :1], visual, text[:, 1:]], dim=1)
        mark('select')
        ids = self.generate(rows)
        mark('language_model')
        return self.action_head.decode(ids)

    def generate(self, rows: Tensor) -> Tensor:
        """Input rows [1, T, width] -> the seven likeliest tokens, greedily, [1, 7] int64."""
        decoder = CausalDecoder(self.language_model, rows.shape[1] + ACTION_DIMENSION)
        ids: list[Tensor] = []
        for _ in range(ACTION_DIMENSION):
            state = decoder(rows)[:, -1]
            ids.append(self.action_head.token_ids(state))
            rows = self.language_model.embed_tokens(ids[-1].clamp(min=0))[:, None]
        return torch.stack(ids, dim=1)


class CausalDecoder:
    """Feeds one sequence to the decoder, piece by piece, and keeps the keys and values.

    room: rows of the whole sequence at most.
    """

    def __init__(self, model: LanguageModel, room: int):
        self._model = model
        self._room = room
        self._rows = 0
        self._cache: list[tuple[Tensor, Tensor]] = []

    def __call__(self, states: Tensor) -> Tensor:
        """The next rows [1, M, width] -> their hidden states after the final norm.

        The first piece may be of any length, the others are single rows.
        """
        model, added = self._model, states.shape[1]
        end = self._rows + added
        positions = torch.arange(self._rows, end, device=states.device)[None]
        rope = Rope(
            positions, model.config.width // model.config.heads, model.config.rope_theta,
            states.dtype,
        )
        if not self._cache:
            shape = (1, model.config.heads, self._room, model.config.width // model.config.heads)
            self._cache = [(states.new_empty(shape), states.new_empty(shape))
                           for _ in model.layers]
        for layer, (keys, values) in zip(model.layers, self._cache, strict=True):
            states = states + self._attend(layer, states, rope, keys, values)
            states = states + layer.mlp(layer.post_attention_layernorm(states))
        self._rows = end
        return model.norm(states)

    def _attend(
        self, layer: DecoderLayer, states: Tensor, rope: Rope, keys: Tensor, values: Tensor
    ) -> Tensor:
        attention, x = layer.self_attn, layer.input_layernorm(states)
        query, key, value = (
            linear(x).unflatten(2, (attention.heads, -1)).transpose(1, 2)
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        new, end = slice(self._rows, self._rows + x.shape[1]), self._rows + x.shape[1]
        keys[:, :, new], values[:, :, new] = rope(key), value
        mixed = functional.scaled_dot_product_attention(
            rope(query), keys[:, :, :end], values[:, :, :end], is_causal=x.shape[1] > 1
        )
        return attention.o_proj(mixed.transpose(1, 2).flatten(2))
