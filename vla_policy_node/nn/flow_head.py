"""What an action expert has around its layers: noisy actions come in, their velocity goes out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_policy_node.nn.flow import embed_time


class FlowHead(nn.Module):
    """Projections of actions and of the time of the flow; a subclass has the layers.

    width: of the rows. room: numbers of an action, filled up with zeros. periods: of the waves
    that tell the time. mixed: whether time is mixed into each action's row.
    """

    def __init__(self, width: int, room: int, periods: tuple[float, float], mixed: bool = True):
        super().__init__()
        self.periods = periods
        self.action_in_proj = nn.Linear(room, width)
        self.time_mlp_in = nn.Linear(2 * width if mixed else width, width)
        self.time_mlp_out = nn.Linear(width, width)
        self.action_out_proj = nn.Linear(width, room)

    def waves(self, times: Tensor) -> Tensor:
        """Times [B] -> [B, width], in the dtype of the weights."""
        bias = self.action_in_proj.bias
        return embed_time(times, len(bias), self.periods).to(bias.device, bias.dtype)

    def rows_of(self, actions: Tensor, waves: Tensor) -> Tensor:
        """Noisy actions [B, K, room] -> rows [B, K, width]."""
        return self.action_in_proj(actions.to(waves.dtype))

    def mix(self, rows: Tensor, waves: Tensor) -> Tensor:
        """Rows [B, K, width] and waves [B or 1, width] of their time -> rows that know it."""
        return self.time_mlp(torch.cat([rows, waves[:, None].expand_as(rows)], dim=-1))

    def time_mlp(self, x: Tensor) -> Tensor:
        """Two layers, of the time alone or of rows with it."""
        return self.time_mlp_out(functional.silu(self.time_mlp_in(x)))

    def velocity(self, states: Tensor) -> Tensor:
        """Normed states of the actions' rows -> velocity [B, K, room], float32 at least."""
        velocity = self.action_out_proj(states)
        return velocity.to(torch.promote_types(velocity.dtype, torch.float32))
