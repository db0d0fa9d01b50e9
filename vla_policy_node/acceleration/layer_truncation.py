"""Layer truncation (`depth_cut`): the last layers of the language model are removed.

SmolVLA (Shukor et al. 2025, arXiv 2506.01844): the first half of the layers of the vision-language
model; "every second layer" is named as a competitive alternative. FLOWER (Reuss et al. 2025, arXiv
2509.04996, section 4): of decoder-only models the last 30 % go, of encoder-decoder models the
decoder. Both train the policy after the cut. Do not expect a checkpoint to act that was not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, cast

from torch import nn

from vla_policy_node.acceleration.base import Capability, Effect, Method
from vla_policy_node.nn.config import ModelConfig

if TYPE_CHECKING:
    from vla_policy_node.families import PolicyNetwork


class LayerTruncation(Method):
    """Keeps the first layers, or evenly spaced ones, and reads no others.

    keep: share of the layers, (0, 1]. 0.5 is SmolVLA, 0.7 FLOWER, 1.0 keeps all.
    spread: keep layers evenly spaced over the depth, the first one always, instead of the first
        ones; with 0.5 every second layer.
    """

    name = 'depth_cut'
    needs = frozenset({Capability.LAYERS})
    does = frozenset({Effect.CHANGES_WEIGHTS})
    off: ClassVar = {'keep': 1.0}

    def __init__(self, *, keep: float = 0.5, spread: bool = False):
        if not 0 < keep <= 1:
            raise ValueError(f'depth_cut must keep a share of the layers in (0, 1], not {keep}.')
        self.keep = keep
        self.spread = spread

    def changed_config(self, config: ModelConfig) -> ModelConfig:
        """Return it with fewer layers."""
        decoder = config.language_model
        return replace(
            config, language_model=replace(decoder, layers=self._count(decoder.layers)))

    def change_structure(self, network: nn.Module) -> None:
        """Remove the layers, and those of an expert that attend to them."""
        for decoder in cast('PolicyNetwork', network).decoders():
            count = self._count(len(decoder.layers))
            step = len(decoder.layers) / count if self.spread else 1
            kept = {int(index * step) for index in range(count)}
            for index in reversed(range(len(decoder.layers))):
                if index not in kept:
                    del decoder.layers[index]

    def _count(self, layers: int) -> int:
        return max(1, round(self.keep * layers))
