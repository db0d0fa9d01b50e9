"""The base class of acceleration methods: hooks into the policy, declarations, a report.

A method subclasses `Method` and overrides the hooks that it uses (`acceleration.hooks` and, for
the forward pass, `nn.hooks`); the others do nothing. Besides those it may

    prepare     get ready for a checkpoint, once, when the policy loads
    reset       forget: a new episode or instruction begins
    report      say what it did in the last pass

Every method keeps to these rules, and its test says so:

- Switched off, by its own setting or by not being listed, it changes no bit of the result in
  float32, on one processor with the same number of threads.
- Dropping tokens equals hiding them from attention: order and positions of the rest stay.
- What it remembers from one step to the next is its own and is gone after `reset()`.
- It saves what it claims: what is dropped, skipped or reused is not computed.
- It reports what it did in the last pass, and does nothing that it does not declare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from vla_policy_node.acceleration.answers import StepAnswers
from vla_policy_node.acceleration.declarations import IN_PASS, Assumption, Effect
from vla_policy_node.acceleration.hooks import Step, StepHooks, WeightHooks
from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.hooks import PassHooks

__all__ = ['Assumption', 'Capability', 'Effect', 'Method', 'Report', 'Step']


@dataclass(frozen=True)
class Report:
    """What a method did in the last forward pass.

    kept: [V] bool over all visual tokens, camera by camera, row by row: those that all layers
        computed anew. Where tokens from earlier steps are attended to, these are not among them.
    scores: [V] float32, what it ranked the tokens by, empty if it ranked none.
    layer: the other tokens were dropped before this layer of the language model.
    flops: what the choice itself cost, counted as in `nn.flops`.
    denoising_reused: denoising steps that reused what the action head did in another one.
    """

    kept: np.ndarray
    scores: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    layer: int = 0
    flops: int = 0
    denoising_reused: int = 0


class Method(WeightHooks, StepHooks, PassHooks):
    """A method that does nothing; subclasses override the hooks they use.

    name: how configuration files and reports call the method.
    action_rows: the rows the head should read if neither user nor checkpoint says,
        '' for no wish (see `families.prismatic.ACTION_ROWS`).
    answers: what answers some steps instead of the network, None if nothing does.
    needs: what the policy must offer. does: what the method may do to it, as it is set; what
        has been learnt may narrow it in `prepare`.
    assumes: what must hold of how actions are executed; in other execution modes it is refused.
    reads_actions: names of the first numbers of an action, if it knows what they mean.
    open_settings: constants that the source leaves open -> values to try beside the default, one
        at a time, in `vla bench methods --sweep`.
    off: settings with which it does nothing; None if only leaving it away does that.
    weights_file: in the directory of a checkpoint, what it has learnt; '' if it learns nothing.
    """

    name: ClassVar[str] = ''
    action_rows: ClassVar[str] = ''
    answers: StepAnswers | None = None
    needs: ClassVar[frozenset[Capability]] = frozenset()
    does: frozenset[Effect] = frozenset()
    assumes: ClassVar[frozenset[Assumption]] = frozenset()
    reads_actions: ClassVar[tuple[str, ...]] = ()
    open_settings: ClassVar[Mapping[str, Sequence[object]]] = {}
    off: ClassVar[Mapping[str, object] | None]
    weights_file: ClassVar[str] = ''

    @property
    def acts_in_pass(self) -> bool:
        """Whether it takes part in the forward pass, and not only before or instead of it."""
        return bool(self.does & IN_PASS)

    def prepare(self, checkpoint: Path, config: ModelConfig) -> None:
        """Get ready for a checkpoint: `LocalPolicy.load` calls this once, before the first pass.

        Reads what the method itself has learnt from the directory. Raises ValueError with one
        sentence for weights that are not there and settings that do not fit the model.

        config: of the model that will run, that is, after what all methods change of it.
        """

    @classmethod
    def save_untrained(cls, checkpoint: Path, config: ModelConfig) -> None:
        """Write `weights_file` with random values: for tests, and to count FLOPs."""

    @classmethod
    def counted_settings(cls, config: ModelConfig) -> dict[str, object]:
        """Settings with which FLOPs are counted without pictures: what is published is kept."""
        return {}

    def reset(self) -> None:
        """Forget everything about past steps: a new episode or instruction begins."""

    def report(self) -> Report | None:
        """Say what the last pass did, None before the first and after `reset()`."""
        return None
