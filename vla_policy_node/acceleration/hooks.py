"""Hook interfaces outside the forward pass: on the weights, and on every step.

    WeightHooks     once, when the policy loads
    StepHooks       every step in which the network runs, before it

In between lies the forward pass of the network, whose interfaces are in `nn.hooks`. By default all
hooks do nothing. All calls come from the one thread that runs the policy, with batch size 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor, nn

from vla_policy_node.policy.interface import Execution

if TYPE_CHECKING:
    from vla_policy_node.nn.config import ModelConfig


@dataclass(frozen=True)
class Step:
    """Inputs of one step of the policy.

    images: [cameras, 3, H, W] float32 in [0, 1], RGB, cropped as the vision encoders see them.
    proprio: [P] float64, as in `policy.interface.Observation`.
    execution: what became of past chunks; of steps that the network did not see, too.
    """

    images: Tensor
    proprio: np.ndarray
    execution: Execution = field(default_factory=Execution)


class WeightHooks:
    """Hooks on the weights, in this order and after `Method.prepare`; see `runtime.loading`."""

    def changed_config(self, config: ModelConfig) -> ModelConfig:
        """Return the config of a network after `change_structure`, where that changes it."""
        return config

    def change_structure(self, network: nn.Module) -> None:
        """Take parts out, in place: once, before their weights are read.

        network: has no values yet, only shapes (device 'meta'). Whatever stays must be the
        object that it was, which tells where the files have its values.
        """

    def change_weights(self, network: nn.Module) -> None:
        """Change the weights in place, or keep some to compute with: once, before the first pass.

        network: has all its values, fused and of few bits if the policy will run so.
        """


class StepHooks:
    """Hooks before the network.

    reads_state: names of the first numbers of `Step.proprio`, which count also where the network
        reads none; () if it does not look at them.
    """

    reads_state: ClassVar[tuple[str, ...]] = ()

    def begin_step(self, step: Step) -> None:
        """A step begins in which the network will run: look at the inputs."""
