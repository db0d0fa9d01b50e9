"""What the action head of pi0 and pi0.5 costs."""

from __future__ import annotations

from collections.abc import Sequence

from vla_policy_node.families.pi0_config import Pi0Config
from vla_policy_node.nn.flops import LayerRows, chain_flops, layer_flops


def head_flops(config: Pi0Config, seen: Sequence[int], reused: int) -> int:
    """The state's row once, and the expert in every step; seen: rows in the cache, by layer."""
    expert, rows = config.expert_decoder, config.chunk_length
    width, room, state = expert.width, config.action_room, int(config.state_room > 0)
    modulated = chain_flops(expert.condition_width, 3 * width)  # one norm
    if expert.condition_width:
        embedded = rows * chain_flops(room, width) + chain_flops(width, width, width) + modulated
    else:
        embedded = rows * chain_flops(room, width) + rows * chain_flops(2 * width, width, width)
    layers = sum(
        layer_flops(expert, LayerRows(rows, rows, keys + state + rows)) + 2 * modulated
        for keys in seen)
    once = state * (chain_flops(config.state_room, width) + sum(
        layer_flops(expert, LayerRows(index < len(seen) - 1, 1, keys + 1))
        for index, keys in enumerate(seen)))
    steps = config.denoising_steps
    return once + steps * (embedded + rows * chain_flops(width, room)) + (steps - reused) * layers
