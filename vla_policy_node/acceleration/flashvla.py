"""FlashVLA: keep informative tokens, and repeat the last answer in a still scene (2025).

"Think Twice, Act Once", arXiv 2505.21200 (not the streaming FlashVLA of 2026), from summaries and
reviews; there is no public code. Two parts:

- Information contribution score. The attention output T of the visual tokens, one layer before
  the drop, has the decomposition U S V'; a token's score is sum_i |u_i s_i|, its L1 norm in
  the principal axes of T. It needs no attention map.
- FlashTrigger. If the last two answers point the same way (angle below `max_angle`) and their
  kept tokens overlap by more than `min_overlap`, the last answer is given again. Equation 6 of
  the paper prints > for the angle, against its text; < is meant. After an answer given again the
  network answers twice, so that both memories are its own.

The paper leaves open: how many tokens (100 to 192 per view are mentioned), the threshold of the
angle, and how its `delta` gives that of the overlap. The defaults were compared in docs/constants:
with an overlap of 0.8 hardly anything was answered again.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vla_policy_node.acceleration.answers import StepAnswers
from vla_policy_node.acceleration.base import Assumption, Capability, Effect
from vla_policy_node.acceleration.selection import Budget, Selection, by_token, top
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.sequence import TokenSequence
from vla_policy_node.policy.interface import ActionChunk, InferenceRequest, PolicyDescription


class FlashVla(Selection):
    """Keeps the tokens that contribute most, and repeats the answer where nothing changes.

    layer: first layer that runs without the others; published is 2.
    keep: share of the tokens, 1.0 keeps all. count: so many instead, 0 for the share.
    max_angle: between the last two chunks, rad; 0 never repeats an answer.
    min_overlap: share of the kept tokens that were also kept one step before.
    """

    name = 'flashvla'
    needs = frozenset({Capability.VISUAL_TOKENS, Capability.LAYERS})
    does = frozenset({
        Effect.DROPS_TOKENS_LATER, Effect.READS_OUTPUTS, Effect.ANSWERS_STEPS,
        Effect.COST_VARIES})
    off: ClassVar = {'keep': 1.0, 'max_angle': 0.0}
    assumes = frozenset({Assumption.WHOLE_CHUNKS})
    open_settings: ClassVar = {
        'keep': (0.25, 0.75), 'max_angle': (0.0, 0.3), 'min_overlap': (0.8,)}

    def __init__(
        self,
        *,
        layer: int = 2,
        keep: float = 0.5,
        count: int = 0,
        max_angle: float = 0.1,
        min_overlap: float = 0.6,
    ):
        super().__init__()
        if layer < 1 or max_angle < 0:
            raise ValueError(
                'flashvla needs a layer of at least 1 and a max_angle of at least 0, not '
                f'{layer} and {max_angle}.'
            )
        self.layer = layer
        self.budget = Budget(self.name, keep, count)
        self.answers = self._trigger = FlashTrigger(max_angle, min_overlap)
        self._ranks: Tensor  # of the last pass

    def prepare(self, checkpoint: Path, config: ModelConfig) -> None:
        """Refuse a layer that the model does not have."""
        self._check_layer(self.layer, config)

    def watch_output(self, index: int, sequence: TokenSequence, output: Tensor) -> None:
        """Rank the tokens one layer before the drop."""
        if index == self.layer - 1:
            visual = output[0, sequence.span('visual')]
            self._ranks = by_token(contribution(visual), sequence)
            self._flops = svd_flops(*visual.shape)

    def before_layer(self, index: int, sequence: TokenSequence) -> TokenSequence:
        """Drop the lowest ranks."""
        if index != self.layer:
            return sequence
        ranks = self._ranks[sequence.visual_tokens]
        kept = top(ranks, self.budget.of(sequence.visual_total))
        return self._keep(sequence, kept, ranks, index)

    def reset(self) -> None:
        """Forget answers and kept tokens."""
        super().reset()
        self._trigger.reset()


class FlashTrigger(StepAnswers):
    """Gives the last answer again where nothing changes, if that one was carried out.

    max_angle, min_overlap: as for `FlashVla`.
    """

    name = FlashVla.name

    def __init__(self, max_angle: float, min_overlap: float):
        self.max_angle = max_angle
        self.min_overlap = min_overlap
        self._actions: deque[np.ndarray] = deque(maxlen=2)
        self._sets: deque[np.ndarray] = deque(maxlen=2)

    def answer(
        self, request: InferenceRequest, description: PolicyDescription
    ) -> np.ndarray | None:
        """Repeat the last answer if nothing changes; after an interruption, look first."""
        if len(self._actions) < 2 or not len(request.execution.executed):
            return None
        before, last = self._sets
        overlap = (before & last).sum() / last.sum()
        if angle(*self._actions) < self.max_angle and overlap > self.min_overlap:
            return self._actions[-1].copy()
        return None

    def record(self, chunk: ActionChunk) -> None:
        """Store the answer, or start afresh after a repeated one."""
        if chunk.reused_by or not chunk.selections:
            self.reset()
        else:
            self._actions.append(chunk.actions)
            self._sets.append(np.concatenate([s.kept.ravel() for s in chunk.selections]))

    def reset(self) -> None:
        """Forget answers and kept tokens."""
        self._actions.clear()
        self._sets.clear()


def contribution(output: Tensor) -> Tensor:
    """Information contribution score of each row of [V, width], [V] float32."""
    left, singular, _ = torch.linalg.svd(output.float(), full_matrices=False)
    return (left * singular).abs().sum(dim=1)


def svd_flops(rows: int, columns: int) -> int:
    """FLOPs of a thin singular value decomposition (Golub and Van Loan, R-SVD)."""
    most, least = max(rows, columns), min(rows, columns)
    return 6 * most * least**2 + 20 * least**3


def angle(first: np.ndarray, second: np.ndarray) -> float:
    """Angle between two chunks as vectors, rad; 0 if they are equal, also where they are 0."""
    lengths = np.linalg.norm(first) * np.linalg.norm(second)
    if lengths == 0:
        return 0.0 if np.array_equal(first, second) else np.pi / 2
    if np.array_equal(first, second):
        return 0.0
    return float(np.arccos(np.clip((first * second).sum() / lengths, -1, 1)))
