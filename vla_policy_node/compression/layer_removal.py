"""Removes layers and narrows the MLPs of a language model, once (EfficientVLA, part 1).

Yang et al. 2025, arXiv 2506.10100, section 3.2; no training. Layers whose output resembles their
input are removed (the Block Influence of ShortGPT, arXiv 2403.03853). Every published row with
fewer layers also has a quarter of the MLP width removed, which the text mentions only in passing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_policy_node.nn.sequence import TokenSequence
from vla_policy_node.nn.transformer import Decoder, GatedMlp

if TYPE_CHECKING:
    from vla_policy_node.families.prismatic import PrismaticVla


@torch.inference_mode()
def layer_importance(
    model: Decoder, samples: Iterable[TokenSequence]
) -> Tensor:
    """1 - mean cosine between input and output of each layer, over all rows; [layers] float64.

    samples: what enters the language model, batch 1 each. Rows that enter a layer as zeros, as
    OpenVLA-OFT's action slots do the first, have no direction and do not count there.
    """
    similarity = torch.zeros(len(model.layers), dtype=torch.float64)
    count = 0
    for sequence in samples:
        for index, (before, after) in enumerate(_states(model, sequence)):
            cosines = functional.cosine_similarity(before.double(), after.double(), dim=-1)
            similarity[index] += cosines[before.any(dim=-1)].mean().cpu()
        count += 1
    if not count:
        raise ValueError('Without samples there is no importance of layers.')
    return 1 - similarity / count


def least_important(importance: Tensor, count: int) -> list[int]:
    """Return the layers to remove, ascending; of equals the lower one.

    ValueError where none would be left.
    """
    if not 0 <= count < len(importance):
        raise ValueError(
            f'{count} of {len(importance)} layers cannot be removed; at least one must stay.')
    return sorted(importance.argsort(stable=True)[:count].tolist())


def remove_layers(model: PrismaticVla, removed: Sequence[int]) -> None:
    """Take layers out of the language model, in place; the others keep their order."""
    decoder = model.language_model
    decoder.layers = nn.ModuleList(
        layer for index, layer in enumerate(decoder.layers) if index not in removed)
    _describe(model, layers=len(decoder.layers))


def narrow_mlps(model: PrismaticVla, share: float) -> None:
    """Keep this share of the channels of every MLP of the language model, in place.

    The paper uses PruneNet (arXiv 2501.15296), which learns what to keep. Here the channels with
    the largest product of the three norms |gate| |up| |down| of their weights stay; no data is
    needed.
    """
    if not 0 < share <= 1:
        raise ValueError(f'The share of the MLP width must be in (0, 1], not {share}.')
    decoder = model.language_model
    width = max(1, round(share * decoder.config.mlp_width))
    for layer in decoder.layers:
        mlp = cast(GatedMlp, layer.mlp)
        kept = channel_norms(mlp).argsort(descending=True, stable=True)[:width]
        _keep_channels(mlp, kept.sort().values)
    _describe(model, mlp_width=width)


def channel_norms(mlp: GatedMlp) -> Tensor:
    """|gate| |up| |down| of each channel, [mlp width] float32."""
    return (
        mlp.gate_proj.weight.float().norm(dim=1)
        * mlp.up_proj.weight.float().norm(dim=1)
        * mlp.down_proj.weight.float().norm(dim=0)
    )


def _keep_channels(mlp: GatedMlp, kept: Tensor) -> None:
    for linear, select in (
        (mlp.gate_proj, lambda weight: weight[kept]),
        (mlp.up_proj, lambda weight: weight[kept]),
        (mlp.down_proj, lambda weight: weight[:, kept]),
    ):
        weight = select(linear.weight.detach()).contiguous()
        linear.out_features, linear.in_features = weight.shape
        linear.weight = nn.Parameter(weight, linear.weight.requires_grad)


def _describe(model: PrismaticVla, **changes: Any) -> None:
    decoder = model.language_model
    decoder.config = replace(decoder.config, **changes)
    model.config = replace(model.config, language_model=decoder.config)


def _states(model: Decoder, sequence: TokenSequence) -> list[tuple[Tensor, Tensor]]:
    """Input and output of every layer."""
    seen: list[tuple[Tensor, Tensor]] = []

    def note(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        seen.append((inputs[0], output))

    handles = [layer.register_forward_hook(note) for layer in model.layers]
    try:
        model(sequence)
    finally:
        for handle in handles:
            handle.remove()
    return seen
