"""pi0's action expert: a small decoder that reads the keys and values of a language model.

Black et al. 2024, arXiv 2410.24164; pi0.5: arXiv 2504.16054. The two differ in how the expert is
told the time of the flow and the robot's state:

    pi0     time is mixed into each action's row; the state is a row of its own, which sees the
            prefix and itself, and which the actions see
    pi0.5   time modulates the norms (adaRMS); the state is words of the prompt

The state's row depends neither on time nor on the noise, so it runs once, behind the prefix, and
its keys and values stay in the cache: the same as with the actions beside it, which it cannot see.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_policy_node.nn.flow import FlowStep
from vla_policy_node.nn.flow_head import FlowHead
from vla_policy_node.nn.kv_cache import KvCache
from vla_policy_node.nn.sequence import TokenSequence, lay_out
from vla_policy_node.nn.transformer import Decoder, DecoderConfig

NO_ROWS = slice(0, 0)  # only keys and values of the last layer are of use


@dataclass(frozen=True)
class Prefix:
    """What the expert reads of pictures, words and state.

    lengths: rows of each layer in the cache. after: [B] int64, position of what comes next.
    """

    cache: KvCache
    lengths: Mapping[int, int]
    after: Tensor


class FlowExpert(FlowHead):
    """Noisy actions at a time of the flow -> their velocity.

    action_room, state_room: numbers of an action and of a state, filled up with zeros;
    state_room: 0 if the expert is not told the state. periods: of the waves that tell the time.
    """

    def __init__(
        self, config: DecoderConfig, action_room: int, state_room: int,
        periods: tuple[float, float],
    ):
        adaptive = config.condition_width > 0
        super().__init__(config.width, action_room, periods, mixed=not adaptive)
        self.state_room, self.adaptive = state_room, adaptive
        self.decoder = Decoder(config)
        if state_room:
            self.state_proj = nn.Linear(state_room, config.width)

    def embed_state(self, state: Tensor) -> Tensor:
        """Normalised states [B, P], P at most `state_room` -> rows [B, 1, width]."""
        full = functional.pad(state, (0, self.state_room - state.shape[1]))
        return self.state_proj(full)[:, None]

    def embed(self, actions: Tensor, waves: Tensor) -> tuple[Tensor, Tensor | None]:
        """Noisy actions [B, K, D] -> rows [B, K, width], and what modulates the norms.

        waves: of the time, [B or 1, width].
        """
        rows = self.rows_of(actions, waves)
        if self.adaptive:
            return rows, functional.silu(self.time_mlp(waves))
        return self.mix(rows, waves), None

    def read_state(self, cache: KvCache, state: Tensor | None, after: Tensor) -> Prefix:
        """Append the state's row to a cache of the language model; state: [B, 1, width].

        after: [B], position of the first row behind the prefix.
        """
        if state is not None:
            sequence = TokenSequence(state, after[:, None], lay_out({'state': 1}))
            self.decoder.run_layers(sequence, NO_ROWS, cache=cache)
            after = after + 1
        return Prefix(cache, cache.lengths(), after)

    def step(self, index: int, waves: Tensor, actions: Tensor, prefix: Prefix) -> FlowStep:
        """One step of the flow from noisy actions [B, K, D]; waves: of its time, [1, width]."""
        conditions: list[Tensor | None] = []

        def embed(x: Tensor) -> Tensor:
            rows, condition = self.embed(x, waves)
            conditions[:] = [condition]
            return rows

        return FlowStep(
            index, actions, embed,
            lambda rows: self._run_layers(rows, conditions[0], prefix),
            lambda rows: self.velocity(self.decoder.finish(rows, conditions[0])))

    def _run_layers(self, rows: Tensor, condition: Tensor | None, prefix: Prefix) -> Tensor:
        places = torch.arange(rows.shape[1], device=rows.device)
        sequence = TokenSequence(
            rows, prefix.after[:, None] + places, lay_out({'actions': rows.shape[1]}))
        rows = self.decoder.run_layers(sequence, cache=prefix.cache, condition=condition)
        prefix.cache.crop(prefix.lengths)
        return rows
