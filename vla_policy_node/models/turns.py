"""Gives each acceleration method its turn in the layers of the language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vla_policy_node.models.language_model import LayerHooks
from vla_policy_node.nn.sequence import TokenSequence

if TYPE_CHECKING:
    from vla_policy_node.acceleration.base import Method


class Turns(LayerHooks):
    """The methods one after the other, in each of the hooks.

    head: hidden states of the action rows -> normalised actions, for methods that want to know
        what the answer would be.
    """

    def __init__(self, methods: Sequence[Method], head: Callable[[Tensor], Tensor]):
        self._methods = methods
        self._head = head

    def select_layers(self, sequence: TokenSequence, layers: Sequence[int]) -> Sequence[int]:
        """Each chooses among the layers that those before it left."""
        for method in self._methods:
            layers = method.select_layers(sequence, layers)
        return layers

    def before_layer(self, index: int, sequence: TokenSequence) -> TokenSequence:
        """Each changes what those before it made."""
        for method in self._methods:
            sequence = method.before_layer(index, sequence)
        return sequence

    def stops_before(self, index: int, states: Callable[[], Tensor]) -> bool:
        """Stop if any of them wants to."""
        return any(
            method.stops_before(index, lambda: self._head(states())) for method in self._methods
        )

    def keys_values(
        self, index: int, sequence: TokenSequence, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Each changes what those before it made."""
        for method in self._methods:
            key, value = method.keys_values(index, sequence, key, value)
        return key, value

    def appended_positions(self, index: int, sequence: TokenSequence) -> Tensor | None:
        """Each says where its keys belong, in the order in which they were appended."""
        said = [method.appended_positions(index, sequence) for method in self._methods]
        said = [positions for positions in said if positions is not None]
        return torch.cat(said, dim=-1) if said else None

    def watch_attention(
        self, index: int, sequence: TokenSequence, attention: Callable[[slice], Tensor]
    ) -> None:
        """Show it to each."""
        for method in self._methods:
            method.watch_attention(index, sequence, attention)

    def watch_output(self, index: int, sequence: TokenSequence, output: Tensor) -> None:
        """Show it to each."""
        for method in self._methods:
            method.watch_output(index, sequence, output)
