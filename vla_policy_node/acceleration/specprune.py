"""SpecPrune-VLA: drop static tokens, except those that the first layers attend to (2025).

arXiv 2509.05614, in the form of its public code (alexwhz-sjtu/SpecPrune-VLA), which differs from
the paper's text in most numbers. Of each camera the `static` patches most similar to an older
picture's, by the cosine of their raw pixels, at least `similarity`, are static and go; all others
stay. Of the static ones stay those to which the prompt, without the first 9 tokens of its
template, attends most (r is `local_share`):

- Before layer 1, by the attention of layer 0, three times the local count of each camera: int(20
  r) of the third-person camera and int(15 r) of the others, in fine motion int(40 r^2) and
  int(30 r^2), and at least one.
- Before layer 2 the best local count by layer 0, and as many by layer 1.

The older picture is T = min(int(-16/3 v/6 + 22/3) + 3, 6) control steps old, v the length of the
summed translations of the last chunk. Pictures come once per inference, so the one taken is
max(1, round(T / length of the chunk)) inferences old. To a first picture there is none older, and
nothing goes; the code compares it with itself.

Motion is looked at after each action, in its units: fine begins where its translation is shorter
than 0.4, or across shorter than 0.1, upwards less than 0.1 and its turn less than 0.2; it ends
where it goes upwards by more than 0.2, or with the last action of a chunk turns by more than 0.3.
The code also infers anew in the middle of a chunk when fine motion begins; a method cannot.

Layer drops, off in the code and here (`layer_share` 1): S = 0.8 S + 0.2 w after layers 0, 1 and 12
of 32, w falling from 10 to 0.1 with the rank of a token in its camera, by the attention of all
rows that are not visual; after layers 5, 10, 15, 20 and 25 the best S stay, so many that
`layer_share` of all rows are left, at least 60 tokens.

The paper also keeps the best tokens of the last inference; in the code that set is empty, and
`global_count` is 0. The code's second choice takes places among the rows left for tokens; here
they are what they are meant to be. In models of other depth the layer drops lie as deep.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vla_policy_node.acceleration.base import Capability, Effect, Step
from vla_policy_node.acceleration.selection import (
    Selection,
    at_depth,
    attention_received,
    patches,
    static_tokens,
    top,
    top_of_cameras,
)
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.lazy_attention import LazyAttention
from vla_policy_node.nn.sequence import TokenSequence

TEMPLATE = 9  # tokens of 'In: What action should the robot take to'
WIDER = 3  # times the local count, before layer 1
MOST_STEPS_BACK = 6
DROPS = (6, 11, 16, 21, 26)  # before these
SCORED = (0, 1, 12)
SCORE_MEMORY = 0.8
FEWEST = 60


class SpecPrune(Selection):
    """Drops static tokens before layers 1 and 2, and others later on if asked to.

    static, static_fine: of each camera, patches that go at most; published are 200 and 220 of 256,
        the latter in fine motion. 0 for both drops nothing.
    similarity: cosine of a patch's pixels with the older picture's from which on it is static.
    local_share: r above; published are 0.5 and 0.8.
    global_count: tokens that stay for the attention of the last inference; 100 is near the paper.
    layer_share: of the rows left, how many each later drop keeps; published is 0.8, 1.0 keeps all.
    """

    name = 'specprune'
    needs = frozenset({Capability.VISUAL_TOKENS, Capability.LAYERS})
    does = frozenset({Effect.DROPS_TOKENS_LATER, Effect.READS_ATTENTION, Effect.COST_VARIES})
    reads_actions = ('dx', 'dy', 'dz', 'drx', 'dry', 'drz')
    off: ClassVar = {'static': 0, 'static_fine': 0}
    open_settings: ClassVar = {
        'similarity': (0.95, 0.996), 'local_share': (0.5,), 'global_count': (100,),
        'layer_share': (0.8,),
    }

    def __init__(
        self,
        *,
        static: int = 200,
        static_fine: int = 220,
        similarity: float = 0.986,
        local_share: float = 0.8,
        global_count: int = 0,
        layer_share: float = 1.0,
    ):
        super().__init__()
        if min(static, static_fine, global_count) < 0 or not 0 <= local_share <= 1 or (
            not 0 < layer_share <= 1
        ):
            raise ValueError(
                'specprune needs static, static_fine and global_count of at least 0, local_share '
                f'in [0, 1] and layer_share in (0, 1], not {static}, {static_fine}, '
                f'{global_count}, {local_share} and {layer_share}.')
        self.static, self.static_fine = static, static_fine
        self.similarity = similarity
        self.local_share = local_share
        self.global_count = global_count
        self.layer_share = layer_share
        self._config: ModelConfig  # from `prepare` on
        self._pixels: deque[Tensor] = deque(maxlen=MOST_STEPS_BACK + 1)
        self._recent: deque[np.ndarray] = deque()  # actions executed, as many as a chunk has
        self._back = 1
        self.motion = Motion()
        self._local: dict[int, Tensor] = {}  # [V], of the first two layers
        self._mattered: Tensor | None = None
        self._seen: list[Tensor] = []
        self._running: Tensor | None = None

    def prepare(self, checkpoint: Path, config: ModelConfig) -> None:
        """Place the drops in the depth of the model; ValueError if it has too few layers."""
        layers = config.language_model.layers
        if layers <= 2:
            raise ValueError(
                f'specprune drops tokens before layer 2, and the model has only {layers} layers.')
        self._config = config
        self._recent = deque(maxlen=config.chunk_length)
        self._drops = {at_depth(layer, layers) for layer in DROPS} - {0, 1, 2}
        self._scored = {0, 1, at_depth(SCORED[-1], layers)}

    def begin_step(self, step: Step) -> None:
        """Remember the picture, and look how the arm has moved since the last one."""
        self._pixels.append(patches(step.images, self._config))
        executed = step.execution.executed
        if len(executed):
            self._recent.extend(executed)
            moved = float(np.linalg.norm(np.stack(self._recent)[:, :3].sum(axis=0)))
            self._back = max(1, round(control_steps_back(moved) / len(executed)))
            self.motion.follow(executed)

    def begin_pass(self) -> None:
        """Forget the last pass, except what mattered in it."""
        super().begin_pass()
        self._mattered = torch.stack(self._seen).mean(dim=0) if self._seen else None
        self._local, self._seen = {}, []
        self._running = None

    def watch_attention(
        self, index: int, sequence: TokenSequence, attention: LazyAttention
    ) -> None:
        """Rank the tokens where that is needed; the last layer decides nothing."""
        if attention.last:
            return
        if index < 2 or self.global_count:
            text = sequence.span('prompt')
            queries = slice(min(text.start + TEMPLATE, text.stop - 1), text.stop)
            scores, flops = attention_received(attention, sequence, queries)
            self._flops += flops
            if index < 2:
                self._local[index] = scores
            if self.global_count:
                self._seen.append(scores)
        if self.layer_share < 1 and index in self._scored:
            self._score(sequence, attention)

    def _score(self, sequence: TokenSequence, attention: LazyAttention) -> None:
        """Move the running scores towards the weights of the present ranks."""
        received, flops = attention_received(attention, sequence, sequence.behind_visual)
        if self._running is None:
            self._running = received.new_zeros(sequence.visual_total, dtype=torch.float32)
        self._flops += flops
        tokens = sequence.visual_tokens
        cameras = self._config.cameras_of(sequence.visual_total)
        camera = tokens // (sequence.visual_total // cameras)
        for index in range(cameras):
            own = tokens[camera == index]
            weights = rank_weights(received[own])
            self._running[own] = (
                SCORE_MEMORY * self._running[own] + (1 - SCORE_MEMORY) * weights)

    def before_layer(self, index: int, sequence: TokenSequence) -> TokenSequence:
        """Drop tokens at the planned layers."""
        tokens = sequence.visual_tokens
        if index in (1, 2):
            stay = self._not_static(sequence).to(tokens.device)
            wider = WIDER if index == 1 else 1
            for scores in self._local.values():
                stay[top_of_cameras(
                    scores[tokens], tokens, *self._local_counts(sequence, wider))] = True
            if self._mattered is not None:
                stay[top(self._mattered[tokens], self.global_count)] = True
            kept = stay.nonzero().flatten()
            return self._keep(sequence, kept, self._local[index - 1][tokens], index)
        if index in self._drops and self.layer_share < 1:
            rows = sequence.states.shape[1]
            count = max(int(self.layer_share * rows) - (rows - len(tokens)), FEWEST)
            assert self._running is not None  # scored in an earlier layer
            running = self._running[tokens]
            return self._keep(sequence, top(running, count), running, index)
        return sequence

    def _local_counts(self, sequence: TokenSequence, wider: int) -> tuple[int, list[int]]:
        """Tokens of a camera, and how many of each stay for their attention."""
        share, fine = self.local_share, self.motion.fine
        first, other = (40 * share**2, 30 * share**2) if fine else (20 * share, 15 * share)
        cameras = self._config.cameras_of(sequence.visual_total)
        counts = [wider * max(1, int(count)) for count in (first, *[other] * (cameras - 1))]
        return sequence.visual_total // cameras, counts

    def _not_static(self, sequence: TokenSequence) -> Tensor:
        """[visual rows] bool, whose patches are not among the most static of their camera."""
        static = torch.zeros(sequence.visual_total, dtype=torch.bool)
        back = min(self._back, len(self._pixels) - 1)
        count = self.static_fine if self.motion.fine else self.static
        if count and back:
            now, before = self._pixels[-1], self._pixels[-1 - back]
            similar = functional.cosine_similarity(now, before, dim=1)
            cameras = self._config.cameras_of(sequence.visual_total)
            static[static_tokens(similar, cameras, count, self.similarity).cpu()] = True
        return ~static[sequence.visual_tokens.cpu()]

    def reset(self) -> None:
        """Forget pictures, attention and motion."""
        super().reset()
        self._pixels.clear()
        self._recent.clear()
        self._back = 1
        self.motion = Motion()
        self._local, self._seen = {}, []
        self._mattered = self._running = None


class Motion:
    """Whether the motion is fine, followed from action to action."""

    def __init__(self):
        self.fine = False

    def follow(self, actions: np.ndarray) -> None:
        """The actions of a chunk [K, 7] are executed one after the other."""
        for place, action in enumerate(actions):
            speed, across = np.linalg.norm(action[:3]), np.linalg.norm(action[:2])
            up, turn = action[2], np.linalg.norm(action[3:6])
            if self.fine:
                last = place == len(actions) - 1
                self.fine = not (up > 0.2 or (turn > 0.3 and last))
            else:
                self.fine = bool(speed < 0.4 or (across < 0.1 and up < 0.1 and turn < 0.2))


def control_steps_back(moved: float) -> int:
    """How old the picture is with which the present one is compared, after so long a way."""
    return max(1, min(int(-16 / 3 * moved / 6 + 22 / 3) + 3, MOST_STEPS_BACK))


def rank_weights(scores: Tensor) -> Tensor:
    """From 10 for the highest score down to 0.1 for the lowest, evenly; ties by place, [N]."""
    weights = torch.linspace(10, 0.1, len(scores), device=scores.device)
    order = scores.argsort(descending=True, stable=True)
    return torch.empty_like(weights).index_copy_(0, order, weights)
