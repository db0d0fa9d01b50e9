"""Hook interfaces outside the forward pass: on the weights, and on every step.

    WeightHooks     once, when the policy loads
    StepHooks       every step of the policy, before and after the network

In between lies the forward pass of the network, whose interfaces are in `nn.hooks`. By default all
hooks do nothing. All calls come from the one thread that runs the policy, with batch size 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

if TYPE_CHECKING:
    from vla_policy_node.models.config import ModelConfig


@dataclass(frozen=True)
class Step:
    """Inputs of one step of the policy.

    images: [cameras, 3, H, W] float32 in [0, 1], RGB, cropped as the vision encoders see them.
    proprio: [8] float64: end-effector position (m), axis-angle (rad), two finger positions (m).
    action_low, action_high: [7] float64, the range of the training data's actions.
    """

    images: Tensor
    proprio: np.ndarray
    action_low: np.ndarray
    action_high: np.ndarray


class WeightHooks:
    """Hooks on the weights."""

    def changed_config(self, config: ModelConfig) -> ModelConfig:
        """Return the config of a model after `change_model`, where its shape changes."""
        return config

    def change_model(self, model: nn.Module) -> None:
        """Change the loaded weights in place: once, after `prepare`, before the first pass."""


class StepHooks:
    """Hooks before and after the network."""

    def begin_step(self, step: Step) -> np.ndarray | None:
        """A step begins. Return actions [K, 7] to answer it without running the network.

        None lets it run. The actions are those of `policy.ActionChunk`: un-normalised. All methods
        see every step; the first result that is not None is used.
        """
        return None

    def end_step(self, actions: np.ndarray, reused: bool) -> None:
        """A step ends with these actions [K, 7]; reused: the network did not run."""
