"""The contract between the forward pass and a method that makes it cheaper.

A step of the policy has named stages: `policy.local.LocalPolicy.infer` begins and ends it, and
between them is a forward pass (`models.openvla_oft.OpenVlaOft.forward`). A method subclasses
`Method`, overrides the stages it uses and inherits no-ops for the rest; in order they are

    changed_config, prepare, change_model       once, when the policy loads
    begin_step          every step: look at the inputs, or answer without the network
    visual_features     every pass: before the projector
    select_tokens       before layer 0
    select_layers       which layers to run
    stops_before, before_layer, keys_values, appended_positions,
    watch_attention, watch_output               in each layer
    denoise             each step of CogACT's action head
    end_step            every step: see the actions
    reset               a new episode or instruction

Every method keeps to these rules, and its test says so:

- Switched off, by its own setting or by not being listed, it changes no bit of the result in
  float32, on one processor with as many threads.
- Dropping tokens equals hiding them from attention: order and positions of the rest stay.
- What it remembers from one step to the next is its own and is gone after `reset()`.
- It saves what it says it saves: what is dropped, skipped or reused is not computed.
- It reports what it did in the last pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor, nn

from vla_policy_node.models.config import ModelConfig
from vla_policy_node.models.language_model import Attention
from vla_policy_node.nn.sequence import TokenSequence

if TYPE_CHECKING:
    from vla_policy_node.models.cogact import DenoisingStep


@dataclass(frozen=True)
class Step:
    """What one step of the policy begins with.

    images: [cameras, 3, H, W] float32 in [0, 1], RGB, cropped as the towers see them.
    proprio: [8] float64: end-effector position (m), axis-angle (rad), two finger positions (m).
    action_low, action_high: [7] float64, the range of the training data's actions.
    """

    images: Tensor
    proprio: np.ndarray
    action_low: np.ndarray
    action_high: np.ndarray


@dataclass(frozen=True)
class Report:
    """What a method did in the last forward pass.

    kept: [V] bool over all visual tokens, camera by camera, row by row: those that all layers
        computed anew. Where tokens from earlier steps are attended to, these are not among them.
    scores: [V] float32, what it ranked the tokens by, empty if it ranked none.
    layer: the other tokens were dropped before this layer of the language model.
    flops: what the choice itself cost, counted as in `models.flops`.
    denoising_reused: denoising steps that reused what the action head did in another one.
    """

    kept: np.ndarray
    scores: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    layer: int = 0
    flops: int = 0
    denoising_reused: int = 0


@dataclass(frozen=True)
class Choice:
    """Which visual rows stay, in tensors whose shapes do not depend on what was chosen.

    kept: [V] bool. votes: [V] int32, how many chose each row. bias: [V] float32 to add to the
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
    needs_sync: whether it takes it that a chunk is executed to its end before the next inference,
        as in execution mode 'sync'; it is then refused in the others.
    changes_weights: whether `change_model` leaves another network than that of the checkpoint.
    open_settings: constants that the source leaves open -> values to try beside the default, one
        at a time, in `vla bench methods --sweep`.
    """

    name: ClassVar[str] = ''
    action_rows: ClassVar[str] = ''
    needs_sync: ClassVar[bool] = False
    changes_weights: bool = False
    open_settings: ClassVar[Mapping[str, Sequence[object]]] = {}

    def prepare(self, checkpoint: Path, config: ModelConfig) -> None:
        """Get ready for a checkpoint: `Policy.load` calls this once, before the first pass.

        Reads what the method itself has learnt from the directory. Raises ValueError with one
        sentence for weights that are not there and settings that do not fit the model.

        config: of the model that will run, that is, after what all methods change of it.
        """

    def changed_config(self, config: ModelConfig) -> ModelConfig:
        """Say what `change_model` makes of a model, where its shape becomes another one."""
        return config

    def change_model(self, model: nn.Module) -> None:
        """Change the loaded weights in place: once, after `prepare`, before the first pass."""

    def begin_step(self, step: Step) -> np.ndarray | None:
        """A step begins. Return actions [K, 7] to answer it without running the network.

        None lets it run. The actions are those of `policy.ActionChunk`: un-normalised. All methods
        see every step; the first one that answers is heard.
        """
        return None

    def end_step(self, actions: np.ndarray, reused: bool) -> None:
        """A step ends with these actions [K, 7]; reused: the network did not run."""

    def visual_features(self, features: Tensor) -> Tensor:
        """Features of both towers before the projector, [1, V, features] -> same."""
        return features

    def select_tokens(self, sequence: TokenSequence) -> TokenSequence:
        """Drop visual tokens before layer 0; called once per pass."""
        return sequence

    def select_layers(self, sequence: TokenSequence, layers: Sequence[int]) -> Sequence[int]:
        """Choose which of the layers to run, in order; called once per pass."""
        return layers

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

    def stops_before(self, index: int, answer: Callable[[], Tensor]) -> bool:
        """Whether to leave out layer `index` (1, 2, ...) and all behind it.

        answer: computes the normalised actions [B, K, 7] that the head gives for the states so
        far, which costs the head.
        """
        return False

    def keys_values(
        self, index: int, sequence: TokenSequence, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Change what layer `index` (0, 1, ...) attends to.

        key, value: [B, heads, T, head width] of the rows of `sequence`, keys rotated. Those of
        tokens that are no rows of it may be appended; `appended_positions` says which they are. No
        value may be larger than the layer could make one: products of 8-bit floats rely on it.
        """
        return key, value

    def appended_positions(self, index: int, sequence: TokenSequence) -> Tensor | None:
        """Say which tokens `keys_values` has just appended: their positions, [B or 1, N] int64.

        None: it appended nothing. Only causal models ask, where a row sees no key behind it.
        """
        return None

    def watch_attention(self, index: int, sequence: TokenSequence, attention: Attention) -> None:
        """See what layer `index` (0, 1, ...) attends to; comes after `keys_values`.

        attention: rows of the sequence that ask -> [B, heads, rows, keys] float32, each row sums
        to 1. It is computed when called; `attention.flops` says what that costs. In the last
        layer that runs (`attention.last`), the queries of the rows come on top.
        """

    def watch_output(self, index: int, sequence: TokenSequence, output: Tensor) -> None:
        """See what attention adds in layer `index` to the rows that ask, [B, rows, width].

        All rows of the sequence ask, except in the last layer.
        """

    def denoise(self, state: DenoisingStep) -> Tensor | None:
        """Predict the noise of one step of a CogACT head, [B, K, 7]; None: run the whole head.

        The first method that answers decides. Steps come in order, from index 0.
        """
        return None

    def reset(self) -> None:
        """Forget everything about past steps: a new episode or instruction begins."""

    def report(self) -> Report | None:
        """Say what the last pass did, None before the first and after `reset()`."""
        return None
