"""An action expert whose layers read the keys and values of a language model: that of SmolVLA.

Layer i of the expert reads layer i of the language model, in one of two ways. A joining layer
attends to those keys and values and to its own, causal among the actions. A crossing layer has
none of its own: it attends to the language model's, projected by its k_proj and v_proj, and its
queries are rotated as if the actions were the first rows. What is projected is the same in all
steps of the flow, so it is done once. Layers may hold different numbers of keys (`nn.kv_cache`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from vla_policy_node.nn.flow import FlowStep, embed_time, flow_times
from vla_policy_node.nn.flow_head import FlowHead
from vla_policy_node.nn.kv_cache import KvCache
from vla_policy_node.nn.transformer import (
    ALL_ROWS,
    DecoderConfig,
    DecoderLayer,
    Rope,
    attend,
    make_norm,
)


class Read(NamedTuple):
    """What a layer reads of the prefix: keys and values [B, key heads, T, head width].

    mask: added to the logits of all keys that it attends to, its own included; None for nothing.
    """

    key: Tensor
    value: Tensor
    mask: Tensor | None


class Reads(NamedTuple):
    """What is the same in all steps: what each layer that runs reads, and where the actions are.

    behind, alone: rotations of the actions behind the prefix, and without it.
    """

    layers: tuple[tuple[int, Read], ...]
    behind: Rope
    alone: Rope


class ExpertLayer(DecoderLayer):
    """number: which one it is in the files. source: width of the keys it crosses to, 0 to join."""

    def __init__(self, config: DecoderConfig, number: int, source: int = 0):
        super().__init__(config)
        self.number, self.crosses = number, source > 0
        if self.crosses:
            self.self_attn.k_proj = nn.Linear(source, config.key_width, bias=False)
            self.self_attn.v_proj = nn.Linear(source, config.key_width, bias=False)

    def read(self, key: Tensor, value: Tensor, bias: Tensor | None, actions: int) -> Read:
        """Keys, rotated, and values of a layer of the language model -> what this one needs.

        bias: [B, T], added to the logits of those keys. actions: how many rows will ask.
        """
        if not self.crosses:
            return Read(key, value, _behind(key, bias, actions))
        mask = None if bias is None else bias.to(key.dtype)[:, None, None]
        rows = (x.transpose(1, 2).flatten(2) for x in (key, value))
        projections = self.self_attn.k_proj, self.self_attn.v_proj
        key, value = (self._heads(project(x)) for project, x in zip(
            projections, rows, strict=True))
        return Read(key, value, mask)

    def step(self, x: Tensor, read: Read, prefix: Reads) -> Tensor:
        """[B, K, width] -> [B, K, width]."""
        attention, normed = self.self_attn, self.input_layernorm(x)
        key, value, mask = read
        if self.crosses:
            query = attention.queries(normed, prefix.alone, ALL_ROWS)
        else:
            query, *own = attention.project(normed, prefix.behind, ALL_ROWS)
            key, value = (torch.cat(pair, dim=2) for pair in zip((key, value), own, strict=True))
        x, added = self.feed(x + attention.o_proj(attend(query, key, value, mask)))
        return x + added

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, self.self_attn.head_width)).transpose(1, 2)


class PrefixExpert(nn.Module):
    """Layers and final norm.

    crossing: which of the layers cross. source: width of the keys of the language model.
    """

    def __init__(self, config: DecoderConfig, crossing: tuple[bool, ...], source: int):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(
            ExpertLayer(config, number, source * crosses)
            for number, crosses in enumerate(crossing))
        self.norm = make_norm(config)

    def number(self, index: int) -> int:
        """Which layer of the files is layer `index`, where others may have been taken out."""
        return cast(ExpertLayer, self.layers[index]).number

    def read(self, cache: KvCache, behind: Tensor, actions: int) -> Reads:
        """Read the prefix once for all steps.

        behind: [B], the position of the first action. actions: how many rows there will be.
        """
        positions = torch.arange(actions, device=behind.device)
        layers, dtype = [], torch.float32
        for index in cache.layers:
            key, value = cache.keys_values(index)
            layer, dtype = cast(ExpertLayer, self.layers[index]), key.dtype
            layers.append((index, layer.read(key, value, cache.bias(index), actions)))
        return Reads(
            tuple(layers),
            Rope.of(self.config, behind[:, None] + positions, dtype),
            Rope.of(self.config, positions[None], dtype))

    def forward(self, x: Tensor, prefix: Reads) -> Tensor:
        """[B, K, width] -> what the layers make of it, before the final norm."""
        for index, read in prefix.layers:
            x = cast(ExpertLayer, self.layers[index]).step(x, read, prefix)
        return x


class PrefixFlow(FlowHead):
    """Noisy actions at a time of the flow, and what the prefix left -> their velocity.

    room, periods: as in `FlowHead`.
    """

    def __init__(self, expert: PrefixExpert, room: int, periods: tuple[float, float]):
        super().__init__(expert.config.width, room, periods)
        self.expert = expert

    def embed(self, actions: Tensor, waves: Tensor) -> Tensor:
        """Noisy actions [B, K, room] and waves [B or 1, width] -> rows [B, K, width]."""
        return self.mix(self.rows_of(actions, waves), waves)

    def waves_of(self, steps: int) -> Tensor:
        """Those of all steps of an inference, [steps, width]."""
        bias = self.action_in_proj.bias
        return _waves_of(steps, len(bias), self.periods, bias.device, bias.dtype)

    def finish(self, states: Tensor) -> Tensor:
        """What the layers made of the rows -> velocity [B, K, room], float32 at least."""
        return self.velocity(self.expert.norm(states))

    def step(self, index: int, waves: Tensor, actions: Tensor, prefix: Reads) -> FlowStep:
        """One step from noisy actions [B, K, room]; waves: of its time."""
        return FlowStep(
            index, actions, lambda x: self.embed(x, waves),
            lambda rows: self.expert(rows, prefix), self.finish)


@lru_cache(maxsize=16)
def _waves_of(
    steps: int, width: int, periods: tuple[float, float], device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Made once: a graph on a device can hold no copy of what the host computes."""
    with torch.inference_mode(False):
        return embed_time(torch.tensor(flow_times(steps)), width, periods).to(device, dtype)


def _behind(key: Tensor, bias: Tensor | None, actions: int) -> Tensor:
    """Mask of actions that see those keys and, of each other, what is not behind them."""
    batch, _, rows, _ = key.shape
    before = key.new_zeros(batch, rows) if bias is None else bias.to(key.dtype)
    own = torch.full((actions, actions), -torch.inf, dtype=key.dtype, device=key.device).triu(1)
    return torch.cat([
        before[:, None, None].expand(-1, -1, actions, -1),
        own.expand(batch, 1, -1, -1)], dim=3)
