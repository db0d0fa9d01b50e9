"""The contract between the forward pass and a method that makes it cheaper.

A forward pass has named stages (`models.openvla_oft.OpenVlaOft.forward`). A method subclasses
`Method`, overrides the stages it uses and inherits no-ops for the rest. Every method keeps to
these rules, and its test says so:

- Switched off, by its own setting or by not being listed, it changes no bit of the result in
  float32.
- Dropping tokens equals hiding them from attention: order and positions of the rest stay.
- What it remembers from one step to the next is its own and is gone after `reset()`.
- It reports what it did in the last pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor

from vla_policy_node.models.config import ModelConfig
from vla_policy_node.models.token_sequence import TokenSequence


@dataclass(frozen=True)
class Report:
    """What a method did in the last forward pass.

    kept: [V] bool over all visual tokens, camera by camera, row by row.
    scores: [V] float32, what it ranked the tokens by, empty if it ranked none.
    layer: the other tokens were dropped before this layer of the language model.
    flops: what the choice itself cost, counted as in `models.flops`.
    """

    kept: np.ndarray
    scores: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    layer: int = 0
    flops: int = 0


@dataclass(frozen=True)
class Choice:
    """Which visual rows stay, in tensors whose shapes do not depend on what was chosen.

    kept: [V] bool. votes: [V] int64, how many chose each row. bias: [V] float32 to add to the
    attention logits of a kept row, None for nothing. flops: what choosing cost.
    """

    kept: Tensor
    votes: Tensor
    bias: Tensor | None
    flops: int


class Method:
    """A method that does nothing; subclasses override the stages they use.

    All calls come from the one thread that runs the policy, with batch size 1.

    name: how configuration files and reports call the method.
    action_rows: the rows the head should read if neither user nor checkpoint says,
        '' for no wish (see `models.openvla_oft.ACTION_ROWS`).
    """

    name: ClassVar[str] = ''
    action_rows: ClassVar[str] = ''

    def prepare(self, checkpoint: Path, config: ModelConfig) -> None:
        """Get ready for a checkpoint: `Policy.load` calls this once, before the first pass.

        Reads what the method itself has learnt from the directory. Raises ValueError with one
        sentence for weights that are not there and settings that do not fit the model.
        """

    def visual_features(self, features: Tensor) -> Tensor:
        """Features of both towers before the projector, [1, V, features] -> same."""
        return features

    def select_tokens(self, sequence: TokenSequence) -> TokenSequence:
        """Drop visual tokens before layer 0; called once per pass."""
        return sequence

    def choose(self, sequence: TokenSequence) -> Choice | None:
        """Choose what `select_tokens` would keep, without a step that waits for the device.

        None: the method cannot, and `models.static_forward` cannot run it. A method that can
        does nothing at any other stage. Nothing is remembered; `note` is told what came of it.
        """
        return None

    def note(self, choice: Choice) -> None:
        """Take a choice for that of the last pass; `report` speaks of it."""

    def before_layer(self, index: int, sequence: TokenSequence) -> TokenSequence:
        """Drop visual tokens, or change states, before layer `index` (1, 2, ...)."""
        return sequence

    def watch_attention(
        self, index: int, sequence: TokenSequence, attention: Callable[[slice], Tensor]
    ) -> None:
        """See what layer `index` (0, 1, ...) will attend to; comes after `before_layer`.

        attention: rows of the sequence that ask -> [B, heads, rows, T] float32, each row sums
        to 1. It is computed when called and costs the layer's key projection once more.
        """

    def reset(self) -> None:
        """Forget everything about past steps: a new episode or instruction begins."""

    def report(self) -> Report | None:
        """Say what the last pass did, None before the first and after `reset()`."""
        return None
