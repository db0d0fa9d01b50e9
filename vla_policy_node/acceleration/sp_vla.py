"""SP-VLA: extrapolate the simple motions, prune tokens in the fast ones (ICLR 2026).

arXiv 2506.12723, from three summaries that agree; its code could not be had. Two parts:

- Schedule. While the arm moves fast along all three axes ("intuitive"), and more than `tau` of the
  last `n` actions are the network's own, the next actions are extrapolated by ridge regression
  over these n: X = [t, 1], beta = (X'X + lambda I)^-1 X'Y. An answer out of the range of the
  training data is not given.
- Pruning. Kept is the union, in order, of the tokens that get the most attention and those whose
  patch has a Canny edge, at a rate that falls with the speed: T_r = 1 - (v - v_low) / (v_high -
  v_low), 1 below v_low. Without the edges success fell from 74.9 to 23.9 % in the paper.

Published are n = 6 and tau = 0.5. The paper tunes the speeds, lambda, the thresholds of the edges
and the layer of the attention per benchmark, and the values are not known. The defaults here are
for actions in [-1, 1] and were compared in docs/constants. The buffer holds
what was executed; whose it was is only known in execution mode sync.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from vla_policy_node.acceleration.answers import StepAnswers
from vla_policy_node.acceleration.base import Assumption, Capability, Effect, Step
from vla_policy_node.acceleration.selection import (
    Selection,
    attention_received,
    top,
    union,
)
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.lazy_attention import LazyAttention
from vla_policy_node.nn.sequence import TokenSequence
from vla_policy_node.policy.interface import ActionChunk, InferenceRequest, PolicyDescription

RANGE_SLACK = 1e-6


class SpVla(Selection):
    """Extrapolates actions where the motion is simple, and prunes where it is fast.

    buffer, network_share: n and tau above; a share of 1 never extrapolates.
    ridge: lambda. min_speed, max_speed: of each axis in the last action, for extrapolation.
    slow, fast: speeds (length of the translation) v_low and v_high of the retention rate.
    min_keep: the rate does not fall below this; 1.0 keeps all.
    layer: tokens are dropped before this layer, by the attention of the one before.
    edge_low, edge_high: thresholds of Canny's hysteresis, shares of the steepest gradient.
    """

    name = 'sp_vla'
    needs = frozenset({Capability.VISUAL_TOKENS, Capability.LAYERS})
    does = frozenset({
        Effect.DROPS_TOKENS_LATER, Effect.READS_ATTENTION, Effect.ANSWERS_STEPS,
        Effect.COST_VARIES})
    off: ClassVar = {'min_keep': 1.0, 'network_share': 1.0}
    assumes = frozenset({Assumption.WHOLE_CHUNKS})
    reads_actions = ('dx', 'dy', 'dz')
    open_settings: ClassVar = {
        'ridge': (0.1,), 'min_speed': (0.02, 0.2), 'max_speed': (0.5,), 'slow': (0.4,),
        'fast': (0.5,), 'min_keep': (0.5,), 'layer': (1,), 'edge_low': (0.05,),
        'edge_high': (0.15,),
    }

    def __init__(
        self,
        *,
        buffer: int = 6,
        network_share: float = 0.5,
        ridge: float = 1e-3,
        min_speed: float = 0.05,
        max_speed: float = 1.0,
        slow: float = 0.1,
        fast: float = 1.0,
        min_keep: float = 0.25,
        layer: int = 2,
        edge_low: float = 0.1,
        edge_high: float = 0.3,
    ):
        super().__init__()
        if buffer < 2 or layer < 1 or ridge < 0 or not slow < fast or not 0 <= min_keep <= 1:
            raise ValueError(
                'sp_vla needs a buffer of at least 2, a layer of at least 1, a ridge of at least '
                f'0, slow below fast and min_keep in [0, 1], not {buffer}, {layer}, {ridge}, '
                f'{slow}, {fast} and {min_keep}.'
            )
        self.answers = self._extrapolation = Extrapolation(
            buffer, network_share, ridge, min_speed, max_speed)
        self.slow, self.fast, self.min_keep = slow, fast, min_keep
        self.layer = layer
        self.edge_low, self.edge_high = edge_low, edge_high
        self._config: ModelConfig  # from `prepare` on
        self._speed = 0.0  # of the last action that was executed
        self._edges = np.empty(0, bool)
        self._attention: Tensor  # of the last pass

    def prepare(self, checkpoint: Path, config: ModelConfig) -> None:
        """Refuse a layer that the model does not have."""
        self._check_layer(self.layer, config)
        self._config = config

    def begin_step(self, step: Step) -> None:
        """Look how fast the arm is, and for edges if it is fast."""
        executed = step.execution.executed
        self._speed = float(np.linalg.norm(executed[-1, :3])) if len(executed) else 0.0
        if self.retention(self._speed) < 1:
            self._edges = tokens_with_edges(
                step.images.cpu().numpy(), self._config.grid, self.edge_low, self.edge_high)

    def retention(self, speed: float) -> float:
        """Share of the tokens that the attention keeps at this speed."""
        if speed < self.slow:
            return 1.0
        return max(self.min_keep, 1 - (speed - self.slow) / (self.fast - self.slow))

    def watch_attention(
        self, index: int, sequence: TokenSequence, attention: LazyAttention
    ) -> None:
        """Add up what each token gets from all rows, one layer before the drop."""
        if index == self.layer - 1 and self.retention(self._speed) < 1:
            self._attention, self._flops = attention_received(
                attention, sequence, slice(None))

    def before_layer(self, index: int, sequence: TokenSequence) -> TokenSequence:
        """Keep the union of attended tokens and edges."""
        if index != self.layer:
            return sequence
        rate = self.retention(self._speed)
        if rate == 1:
            return self._keep(sequence, torch.arange(sequence.visual_rows), layer=index)
        tokens = sequence.visual_tokens
        edges = torch.from_numpy(self._edges).to(tokens.device)[tokens].nonzero().flatten()
        attention = self._attention[tokens]
        kept = union(top(attention, max(1, round(rate * len(tokens)))), edges)
        return self._keep(sequence, kept, attention, index)

    def reset(self) -> None:
        """Forget the past actions."""
        super().reset()
        self._speed = 0.0
        self._extrapolation.reset()


class Extrapolation(StepAnswers):
    """Goes on with the motion that was executed, while it is simple.

    The arguments are those of `SpVla`.
    """

    name = SpVla.name

    def __init__(
        self, buffer: int, network_share: float, ridge: float, min_speed: float, max_speed: float
    ):
        self.network_share = network_share
        self.ridge = ridge
        self.min_speed, self.max_speed = min_speed, max_speed
        self._past: deque[tuple[np.ndarray, bool]] = deque(maxlen=buffer)
        self._chunk = 0
        self._is_networks = False  # the last chunk

    def answer(
        self, request: InferenceRequest, description: PolicyDescription
    ) -> np.ndarray | None:
        """Extrapolate if that is enough; after an interruption there is nothing to go on with."""
        executed = request.execution.executed
        if not len(executed):
            self._past.clear()
        # In sync, what was executed since the last chunk is of that chunk.
        self._past.extend((action, self._is_networks) for action in executed)
        if not self._is_simple() or not all(description.action_range):
            return None
        actions = extrapolate(
            np.stack([action for action, _ in self._past]), self._chunk, self.ridge)
        low, high = (np.array(end) for end in description.action_range)
        slack = RANGE_SLACK * (high - low)
        if ((low - slack <= actions) & (actions <= high + slack)).all():
            return actions.clip(low, high)
        return None

    def record(self, chunk: ActionChunk) -> None:
        """Remember whose the actions are that will be executed."""
        self._chunk = len(chunk.actions)
        self._is_networks = not chunk.reused_by

    def reset(self) -> None:
        """Forget the past actions."""
        self._past.clear()

    def _is_simple(self) -> bool:
        if len(self._past) < (self._past.maxlen or 0):
            return False
        speeds = np.abs(self._past[-1][0][:3])
        share = np.mean([is_networks for _, is_networks in self._past])
        moves = (speeds > self.min_speed).all() and (speeds <= self.max_speed).all()
        return bool(moves and share > self.network_share)


def extrapolate(past: np.ndarray, count: int, ridge: float) -> np.ndarray:
    """Continue actions [n, D] by `count` more: ridge regression of each dimension on time."""
    times = np.arange(len(past))
    inputs = np.stack([times, np.ones(len(past))], axis=1)
    gram = inputs.T @ inputs + ridge * np.eye(2)
    beta = np.linalg.solve(gram, inputs.T @ past)
    ahead = len(past) + np.arange(count)
    return np.stack([ahead, np.ones(count)], axis=1) @ beta


def tokens_with_edges(
    images: np.ndarray, grid: tuple[int, int], low: float, high: float
) -> np.ndarray:
    """[cameras, 3, H, W] -> [V] bool, tokens whose patch contains a Canny edge."""
    rows, columns = grid
    edges = np.stack([canny(image.mean(axis=0), low, high) for image in images])
    cells = edges.reshape(len(edges), rows, edges.shape[1] // rows, columns, -1)
    return cells.any(axis=(2, 4)).reshape(-1)


def canny(gray: np.ndarray, low: float, high: float, sigma: float = 1.0) -> np.ndarray:
    """Edges of [H, W] by Canny (1986), [H, W] bool; thresholds are shares of the steepest slope.

    Slopes are compared with their neighbours along the gradient, rounded to 45 degrees.
    """
    smooth = ndimage.gaussian_filter(gray, sigma)
    down, right = ndimage.sobel(smooth, axis=0), ndimage.sobel(smooth, axis=1)
    slope = np.hypot(down, right)
    if slope.max() < 1e-6:
        return np.zeros(gray.shape, bool)
    direction = np.round(np.arctan2(down, right) / (np.pi / 4)).astype(int) % 4
    padded = np.pad(slope, 1)
    ridge = np.zeros(gray.shape, bool)
    for number, (dy, dx) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead = padded[1 + dy : padded.shape[0] - 1 + dy, 1 + dx : padded.shape[1] - 1 + dx]
        behind = padded[1 - dy : padded.shape[0] - 1 - dy, 1 - dx : padded.shape[1] - 1 - dx]
        ridge |= (direction == number) & (slope >= ahead) & (slope > behind)
    weak = ridge & (slope > low * slope.max())
    groups, _ = ndimage.label(weak, np.ones((3, 3)))
    strong = np.unique(groups[weak & (slope > high * slope.max())])
    return np.isin(groups, strong) & weak
