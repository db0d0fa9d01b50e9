"""TTF-VLA: reuse the last frame's features of static, unimportant tokens (AAAI 2026).

Temporal token fusion, arXiv 2508.19257, in the form of the released code (PKU-XLab/TTF-VLA,
"hybrid" mode). A token is taken anew if its patch changed (mean absolute difference of the gray
picture above `threshold`) or if it is among the `count` tokens of its camera to which the prompt
attended most in the last pass, at layer 15 of 32; else the last frame's, itself perhaps older.
Each of the two vision encoders decides by itself, about its own part of a token's features. Every
`keyframe`-th step takes all anew. It is meant to act better and saves no time: the vision encoders
run in full here as there.

The code's gray picture is made of normalised pixels; the threshold here is for pixels in [0, 1],
so that the published 0.1 and 0.03 become 0.0225 and 0.0067 for DINOv2, whose normalisation divides
by about 0.225, and 0.05 and 0.015 for SigLIP, whose divides by 0.5.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vla_policy_node.acceleration.base import Capability, Effect, Method, Report, Step
from vla_policy_node.acceleration.selection import at_depth, attention_received, patches, top
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.lazy_attention import LazyAttention
from vla_policy_node.nn.sequence import TokenSequence

GRAY = (0.299, 0.587, 0.114)
ATTENTION_LAYER = 15
# Of its threshold to DINOv2's: what the pixels of the two encoders are divided by.
SIGLIP_SCALE = 0.5 / 0.225


class TtfVla(Method):
    """Takes features of the last frame for what neither changed nor matters.

    threshold: of the change of a patch, gray levels in [0, 1], for DINOv2's part; SigLIP's is
        higher, see above. Below 0 takes all anew.
    count: tokens of each camera that are always taken anew; published are 120 and 70 of 256.
    keyframe: every so many-th step takes all anew; published are 5 and 3, 1 is always.
    """

    name = 'ttf_vla'
    needs = frozenset({Capability.VISUAL_TOKENS, Capability.LAYERS})
    does = frozenset({Effect.REUSES_FEATURES, Effect.READS_ATTENTION})
    off: ClassVar = {'keyframe': 1}

    def __init__(self, *, threshold: float = 0.0225, count: int = 120, keyframe: int = 5):
        if keyframe < 1 or count < 0:
            raise ValueError(
                'ttf_vla needs a keyframe of at least 1 and a count of at least 0, not '
                f'{keyframe} and {count}.'
            )
        self.threshold = threshold
        self.count = count
        self.keyframe = keyframe
        self._config: ModelConfig  # from `prepare` on
        self._now: Tensor | None
        self._gray: Tensor | None
        self._change: Tensor | None
        self._features: Tensor | None
        self._relevance: Tensor | None
        self._step: int
        self.reset()

    def prepare(self, checkpoint: Path, config: ModelConfig) -> None:
        """Remember the sizes; ValueError for more vision encoders than have thresholds."""
        if len(config.feature_widths) > 2:
            raise ValueError(
                'ttf_vla has thresholds for two vision encoders, and this policy has '
                f'{len(config.feature_widths)}; choose another method.')
        self._config = config

    def begin_step(self, step: Step) -> None:
        """Look which patches changed since features were last taken."""
        weights = step.images.new_tensor(GRAY)[:, None, None]
        gray = patches((step.images * weights).sum(dim=1, keepdim=True), self._config)
        self._change = None if self._gray is None else (gray - self._gray).abs().mean(dim=1)
        self._now = gray

    def begin_pass(self) -> None:
        """The network looks at this frame; of one that another method answers nothing is taken."""
        self._flops = 0
        self._gray = self._now

    def visual_features(self, features: Tensor) -> Tensor:
        """Put the last frame's features where nothing happened."""
        if self._features is not None and self._change is not None and self._step % self.keyframe:
            widths = [*self._config.feature_widths] or [features.shape[2]]
            features = torch.cat([
                torch.where(
                    self._fresh(self._change, threshold).to(features.device)[None, :, None],
                    new, old)
                for threshold, new, old in zip(
                    (self.threshold, self.threshold * SIGLIP_SCALE)[: len(widths)],
                    features.split(widths, dim=2),
                    self._features.split(widths, dim=2), strict=True)
            ], dim=2)
        self._step += 1
        self._features = features
        return features

    def _fresh(self, change: Tensor, threshold: float) -> Tensor:
        """[V] bool, tokens of which a vision encoder's features are taken anew."""
        fresh = change > threshold
        if self._relevance is None:
            return fresh
        cameras = self._config.cameras_of(len(self._relevance))
        by_camera = self._relevance.to(fresh.device).view(cameras, -1)
        best = [camera * by_camera.shape[1] + top(relevance, self.count)
                for camera, relevance in enumerate(by_camera)]
        return fresh.index_fill(0, torch.cat(best), True)

    def watch_attention(
        self, index: int, sequence: TokenSequence, attention: LazyAttention
    ) -> None:
        """See what the prompt attends to, for the next step."""
        layers = self._config.language_model.layers
        if index != min(at_depth(ATTENTION_LAYER, layers), layers - 1):
            return
        self._relevance, self._flops = attention_received(
            attention, sequence, sequence.span('prompt'))

    def reset(self) -> None:
        """Forget the last frame; the next step is a key frame."""
        self._now = self._gray = self._change = self._features = self._relevance = None
        self._step = 0
        self._flops = 0

    def report(self) -> Report | None:
        """All tokens went through the layers; scores: how much each patch changed."""
        if self._features is None:
            return None
        kept = np.ones(self._features.shape[1], bool)
        if self._change is None:
            return Report(kept, flops=self._flops)
        return Report(kept, self._change.cpu().numpy(), flops=self._flops)
