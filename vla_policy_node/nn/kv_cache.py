"""Keys and values of the rows that a decoder has seen, so that later rows need not compute them.

Layers may hold different rows: where a method drops tokens before layer k, the layers below k hold
them and those from k on do not; a layer that was skipped holds nothing. So each layer has its
own length, positions and bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class _Layer:
    """Buffers with room for more rows than the `rows` that are there."""

    key: Tensor
    value: Tensor
    positions: Tensor
    bias: Tensor | None
    rows: int


class KvCache:
    """Keys, values, positions and key biases by layer. Batch elements have as many rows each.

    room: rows that will follow the first ones; more cost another buffer.
    Buffers are overwritten in place, so nothing here can be differentiated.
    """

    def __init__(self, room: int = 0):
        self._room = room
        self._layers: dict[int, _Layer] = {}

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that hold rows, in the order in which they ran; later rows run the same."""
        return tuple(self._layers)

    def lengths(self) -> dict[int, int]:
        """Layer -> rows it holds; what `crop` takes."""
        return {index: layer.rows for index, layer in self._layers.items()}

    def rows(self, index: int) -> int:
        """Rows that a layer holds."""
        return self._layers[index].rows if index in self._layers else 0

    def keys_values(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values that a layer holds, [B, key heads, rows, head width] each."""
        layer = self._layers[index]
        return layer.key[:, :, : layer.rows], layer.value[:, :, : layer.rows]

    def positions(self, index: int) -> Tensor:
        """[B, rows] int64, where the rows of a layer belong in the full sequence."""
        layer = self._layers[index]
        return layer.positions[:, : layer.rows]

    def bias(self, index: int) -> Tensor | None:
        """[B, rows] added to the logits of a layer's rows as keys, None for nothing."""
        layer = self._layers.get(index)
        return None if layer is None or layer.bias is None else layer.bias[:, : layer.rows]

    def append(
        self, index: int, key: Tensor, value: Tensor, positions: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Add rows to a layer and return keys and values of all that it holds now.

        key, value: [B, key heads, T, head width], keys rotated. positions: [B, T]. bias: [B, T].
        """
        old = self._layers.get(index)
        start, end = (old.rows if old else 0), (old.rows if old else 0) + key.shape[2]
        if old is None or end > old.key.shape[2]:
            old = self._layers[index] = _with_room(old, key, value, positions, end + self._room)
        if bias is not None and old.bias is None:
            old.bias = bias.new_zeros(old.positions.shape)
        old.key[:, :, start:end], old.value[:, :, start:end] = key, value
        old.positions[:, start:end] = positions
        if old.bias is not None:
            old.bias[:, start:end] = 0 if bias is None else bias
        old.rows = end
        return old.key[:, :, :end], old.value[:, :, :end]

    def crop(self, lengths: Mapping[int, int]) -> None:
        """Forget the rows of each layer behind the first so many, and layers not named.

        With what `lengths` said before, it takes back what was appended since: rows of a denoising
        step that reads its prefix again, or tokens that were guessed wrong.
        """
        self._layers = {
            index: layer for index, layer in self._layers.items() if index in lengths}
        for index, layer in self._layers.items():
            layer.rows = min(layer.rows, lengths[index])


def _with_room(
    old: _Layer | None, key: Tensor, value: Tensor, positions: Tensor, room: int
) -> _Layer:
    """Larger buffers, with the rows of the old ones."""
    batch, heads, _, _ = key.shape
    layer = _Layer(
        key.new_empty(batch, heads, room, key.shape[3]),
        value.new_empty(batch, heads, room, value.shape[3]),
        torch.zeros(batch, room, dtype=positions.dtype, device=positions.device),
        None, 0)
    if old is not None:
        rows = layer.rows = old.rows
        layer.key[:, :, :rows], layer.value[:, :, :rows] = old.key[:, :, :rows], old.value[
            :, :, :rows]
        layer.positions[:, :rows] = old.positions[:, :rows]
        if old.bias is not None:
            layer.bias = old.bias.new_zeros(batch, room)
            layer.bias[:, :rows] = old.bias[:, :rows]
    return layer
