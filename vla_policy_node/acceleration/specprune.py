"""SpecPrune-VLA: what mattered a step ago, what moved, and what the first layers look at (2025).

arXiv 2509.05614 (version 1), sections 4.1 to 4.3. With the score of a token in a layer, the mean
attention that the prompt pays it:

- Before layer 2 stay the `global_count` best of the last step, the `dynamic_count` patches that
  changed most against the picture T steps ago (cosine below `similarity`), and the best of layers
  0 and 1, 40 alpha of each in fine motion and 24 alpha in coarse motion.
- Within the layers: s = w_rank w_conf, w_rank = sigmoid(-k rank), normalised, w_conf = mean / (std
  of the scores); S = 0.8 S + 0.2 s. At `prune layers` the best `layer_share` of S stay.
- T = floor(-(16/3) v + 22/3) + 4 for the speed v of the last action (the paper's box; its text
  divides v by 6). Motion is fine if it is slow in translation and rotation and not upwards.

The paper does not print the numbers of tokens, k, the similarity, the layers of updates (here all
from 2 on), those of drops (here at 1/2 and 3/4 of the depth), and the thresholds of the speeds.
Its alpha is 0.6 to 1.0; it prints 40 alpha, but larger alphas prune more in its tables, so choose
alpha by the number of tokens that stay: 166 to 194 of 512 in the paper. Defaults were compared in
docs/constants.
"""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vla_policy_node.acceleration.base import Step
from vla_policy_node.acceleration.selection import (
    Selection,
    at_depth,
    by_token,
    patches,
    text_rows,
    top,
    union,
)
from vla_policy_node.models.config import ModelConfig
from vla_policy_node.models.language_model import Attention
from vla_policy_node.models.token_sequence import TokenSequence

FIRST_DROP = 2
DROPS = (16, 24)
MOST_STEPS_BACK = 11
KEEP_MEMORY = 0.8


class SpecPrune(Selection):
    """Drops tokens before layer 2, and some more of them at half and three quarters of the depth.

    global_count, dynamic_count: see above; 0 leaves the group out.
    fine_count, coarse_count: tokens from each of the first two layers, times alpha.
    alpha: published are 1.0 (Spatial), 0.8 (Goal), 0.6 (Object, Long).
    similarity: cosine of a patch below which it counts as changed.
    layer_share: of the tokens left, how many each later drop keeps; 1.0 keeps all.
    steepness: k above.
    fine_speed, fine_turn: lengths of translation and rotation in the last action, in its units.
    """

    name = 'specprune'
    open_settings: ClassVar = {
        'global_count': (50, 200), 'dynamic_count': (60,), 'similarity': (0.95,),
        'layer_share': (0.5, 1.0), 'steepness': (0.02, 0.5), 'fine_speed': (0.6,),
        'fine_turn': (0.05,),
    }

    def __init__(
        self,
        *,
        global_count: int = 100,
        dynamic_count: int = 20,
        fine_count: int = 40,
        coarse_count: int = 24,
        alpha: float = 1.0,
        similarity: float = 0.99,
        layer_share: float = 0.8,
        steepness: float = 0.1,
        fine_speed: float = 0.3,
        fine_turn: float = 0.1,
    ):
        super().__init__()
        if min(global_count, dynamic_count) < 0 or min(fine_count, coarse_count) < 1 or (
            alpha <= 0 or not 0 < layer_share <= 1
        ):
            raise ValueError(
                'specprune needs global_count and dynamic_count of at least 0, fine_count and '
                'coarse_count of at least 1, a positive alpha and layer_share in (0, 1].'
            )
        self.global_count, self.dynamic_count = global_count, dynamic_count
        self.fine_count, self.coarse_count, self.alpha = fine_count, coarse_count, alpha
        self.similarity = similarity
        self.layer_share = layer_share
        self.steepness = steepness
        self.fine_speed, self.fine_turn = fine_speed, fine_turn
        self._config: ModelConfig | None = None
        self._pixels: deque[Tensor] = deque(maxlen=MOST_STEPS_BACK + 1)
        self._action = np.zeros(7)
        self._last: Tensor | None = None
        self._scores_now: dict[int, Tensor] = {}
        self._running: Tensor | None = None

    def prepare(self, checkpoint: Path, config: ModelConfig) -> None:
        """Place the drops in the depth of the model; ValueError if it has too few layers."""
        layers = config.language_model.layers
        if layers <= FIRST_DROP:
            raise ValueError(
                f'specprune drops tokens before layer {FIRST_DROP}, and the model has only '
                f'{layers} layers.'
            )
        self._config = config
        self._drops = {at_depth(layer, layers) for layer in DROPS} - {*range(FIRST_DROP + 1)}

    def begin_step(self, step: Step) -> None:
        """Remember the picture."""
        self._pixels.append(patches(step.images, self._config))

    def end_step(self, actions: np.ndarray, reused: bool) -> None:
        """Remember the action at the end of which the next step begins."""
        self._action = actions[-1]

    def select_tokens(self, sequence: TokenSequence) -> TokenSequence:
        """Begin a pass."""
        self._begin_pass()
        if self._scores_now:
            self._last = torch.stack(list(self._scores_now.values())).mean(dim=0)
        self._scores_now = {}
        self._running = sequence.states.new_zeros(sequence.visual_total, dtype=torch.float32)
        return sequence

    def watch_attention(self, index: int, sequence: TokenSequence, attention: Attention) -> None:
        """Score the tokens by what the prompt attends to; the last layer decides nothing."""
        if attention.last:
            return
        asking = text_rows(sequence, self._config)
        scores = attention(asking)[0].mean(dim=(0, 1))[1 : 1 + sequence.visual_rows]
        tokens = sequence.visual_tokens
        self._scores_now[index] = by_token(scores, sequence)
        self._flops += attention.flops(asking.stop - asking.start)
        if index >= FIRST_DROP:
            self._running[tokens] = (
                KEEP_MEMORY * self._running[tokens]
                + (1 - KEEP_MEMORY) * confidence(scores, self.steepness))

    def before_layer(self, index: int, sequence: TokenSequence) -> TokenSequence:
        """Drop tokens at the planned layers."""
        tokens = sequence.visual_tokens
        if index == FIRST_DROP:
            local = math.ceil(
                self.alpha * (self.fine_count if self.is_fine() else self.coarse_count))
            chosen = [top(self._scores_now[layer][tokens], local) for layer in (0, 1)]
            if self._last is not None:
                chosen.append(top(self._last[tokens], self.global_count))
            changed = self._changed().to(tokens.device)
            chosen.append(torch.isin(tokens, changed).nonzero().flatten())
            return self._keep(sequence, union(*chosen), self._scores_now[1][tokens], index)
        if index in self._drops:
            count = max(1, math.ceil(self.layer_share * len(tokens)))
            running = self._running[tokens]
            return self._keep(sequence, top(running, count), running, index)
        return sequence

    def is_fine(self) -> bool:
        """Whether the last action was a fine motion."""
        slow = np.linalg.norm(self._action[:3]) < self.fine_speed
        return bool(
            slow and np.linalg.norm(self._action[3:6]) < self.fine_turn and self._action[2] <= 0)

    def _changed(self) -> Tensor:
        """Tokens whose patches changed most since T steps ago, at most `dynamic_count`."""
        back = min(steps_back(np.linalg.norm(self._action[:3])), len(self._pixels) - 1)
        if back < 1 or not self.dynamic_count:
            return torch.empty(0, dtype=torch.int64)
        similar = functional.cosine_similarity(self._pixels[-1], self._pixels[-1 - back], dim=1)
        least = top(-similar, self.dynamic_count)
        return least[similar[least] < self.similarity]

    def reset(self) -> None:
        """Forget pictures, attention and motion."""
        super().reset()
        self._pixels.clear()
        self._action = np.zeros(7)
        self._last = self._running = None
        self._scores_now = {}


def steps_back(speed: float) -> int:
    """With how old a picture the present one is compared, steps."""
    gap = math.floor(-16 / 3 * speed + 22 / 3) + 4
    return min(max(gap, 1), MOST_STEPS_BACK)


def rank_weights(count: int, steepness: float) -> Tensor:
    """Weights of the ranks 0, 1, ..., which sum to 1 and fall, [count] float32."""
    weights = torch.sigmoid(-steepness * torch.arange(count, dtype=torch.float32))
    return weights / weights.sum()


def confidence(scores: Tensor, steepness: float) -> Tensor:
    """Rank weight of each score times mean / standard deviation of all, [V]."""
    weights = rank_weights(len(scores), steepness).to(scores.device)
    ranks = scores.argsort(descending=True, stable=True).argsort()
    spread = scores.std(correction=0) + 1e-6
    return weights[ranks] * scores.mean() / spread
