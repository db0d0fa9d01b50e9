"""Keys and values that gradients flow through, for training what reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from vla_policy_node.nn.kv_cache import KvCache, _Layer


class GradientCache(KvCache):
    """A `KvCache` that makes longer tensors instead of writing into buffers."""

    def append(
        self, index: int, key: Tensor, value: Tensor, positions: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As in the base class."""
        if self.rows(index):
            if bias is not None or self.bias(index) is not None:
                before = self.bias(index)
                bias = torch.cat([
                    positions.new_zeros(len(key), self.rows(index), dtype=torch.float32)
                    if before is None else before,
                    positions.new_zeros(positions.shape, dtype=torch.float32)
                    if bias is None else bias], dim=1)
            past = self.keys_values(index)
            key, value = (torch.cat(pair, dim=2) for pair in zip(past, (key, value), strict=True))
            positions = torch.cat([self.positions(index), positions], dim=1)
        self._layers[index] = _Layer(key, value, positions, bias, key.shape[2])
        return key, value

    def repeated(self, times: int) -> GradientCache:
        """Return one in which each batch element stands so many times, side by side."""
        more = GradientCache()
        for index in self._layers:
            bias = self.bias(index)
            key, value, positions = (
                x.repeat_interleave(times, 0)
                for x in (*self.keys_values(index), self.positions(index)))
            more._layers[index] = _Layer(
                key, value, positions,
                None if bias is None else bias.repeat_interleave(times, 0), self.rows(index))
        return more
