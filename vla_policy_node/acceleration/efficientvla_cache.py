"""EfficientVLA, part 3: denoising steps that reuse the cached output of the head's blocks.

Yang et al. 2025, arXiv 2506.10100, section 3.4; no training. The paper keeps the outputs of
attention and MLP of every block. Between two full steps their sum is all that matters: a reuse
step is x + (C_attn + C_mlp of block 1) + ..., so one sum for each half of a guided pass is kept
instead, and nothing of the blocks runs. In CogACT's head, where the diffusion step enters by a
token that is dropped, such a step does not even depend on it.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch import Tensor

from vla_policy_node.acceleration.base import Capability, Effect, Method, Report
from vla_policy_node.nn.denoising import DenoisingStep
from vla_policy_node.nn.sequence import TokenSequence


class EfficientVlaCache(Method):
    """Runs the action head in every `interval`-th denoising step, beginning with the first.

    interval: 1 runs all of them; the published value is 5, two full steps of ten.
    """

    name = 'efficientvla_cache'
    needs = frozenset({Capability.DENOISING})
    does = frozenset({Effect.REUSES_DENOISING})
    off: ClassVar = {'interval': 1}
    open_settings: ClassVar = {'interval': (2, 10)}

    def __init__(self, *, interval: int = 5):
        if interval < 1:
            raise ValueError(
                f'efficientvla_cache needs an interval of at least 1, not {interval}.')
        self.interval = interval
        self._visual_tokens = 0
        self._added: Tensor  # by the blocks of the last step that ran
        self._reused: int | None = None

    def begin_pass(self) -> None:
        """Count from 0; nothing is kept from one inference to the next."""
        self._reused = 0

    def select_tokens(self, sequence: TokenSequence) -> TokenSequence:
        """Remember how many visual tokens there were, and leave them."""
        self._visual_tokens = sequence.visual_total
        return sequence

    def denoise(self, state: DenoisingStep) -> Tensor | None:
        """Run the head, or reuse what it did last."""
        if state.index % self.interval:
            self._reused = (self._reused or 0) + 1
            return state.reuse(self._added)
        noise, self._added = state.run()
        return noise

    def reset(self) -> None:
        """Forget the last report; nothing else crosses steps."""
        self._reused = None

    def report(self) -> Report | None:
        """Steps reused; all visual tokens stay."""
        if self._reused is None:
            return None
        return Report(np.ones(self._visual_tokens, bool), denoising_reused=self._reused)
