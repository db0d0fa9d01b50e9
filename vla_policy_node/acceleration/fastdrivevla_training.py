"""FastDriveVLA's training: kept tokens reconstruct the foreground (arXiv 2507.23318).

Tokens scored positive are the foreground, by a straight-through mask; the others are set to zero.
From them a decoder paints the picture without its background, and from the complement the
picture without its foreground; without the second, calling everything foreground would do. Both
count half, each 0.2 (1 - SSIM) + 0.8 MSE. The masks are those of the world, per patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_policy_node.acceleration.fastdrivevla import ForegroundScorer
from vla_policy_node.acceleration.objective import Batch, HeldOut, Objective, teaches
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.transformer import DecoderConfig, DecoderLayer, Rope

if TYPE_CHECKING:
    from vla_policy_node.families.prismatic import PrismaticVla

LAYERS = 2  # six in the paper, whose tokens are of a model of 3 billion parameters
SSIM_SHARE = 0.2
SSIM_WINDOW = 7
C1, C2 = 0.01**2, 0.03**2  # for values in [0, 1]


class Foreground(Objective):
    """FastDriveVLA: the scorer learns which tokens paint the things of a picture."""

    def __init__(self, config: ModelConfig):
        patch_px = config.patch_px
        self.scorer = ForegroundScorer(config.language_model)
        self.painter = PatchPainter(config.language_model, 3 * patch_px**2)
        self.learnt = {'learnt': nn.ModuleDict({
            'scorer': self.scorer, 'painter': self.painter})}
        self._grid = config.grid

    def token_losses(self, visual: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Reconstruction of foreground and background, and how many tokens are called which."""
        visual = visual.detach()
        positions = 1 + torch.arange(visual.shape[1], device=visual.device).expand(len(visual), -1)
        scores = self.scorer(visual, positions)
        things = batch.things.flatten(1)
        loss = reconstruction_loss(
            self.painter, visual, positions, scores, things, batch.pixels, self._grid)
        right = ((scores > 0) == things).float().mean()
        return {'reconstruct': loss, 'right_tokens': right.detach()}

    def save(self, checkpoint: Path, model: PrismaticVla, held_out: HeldOut) -> None:
        """Write the scorer; the painter has done its work."""
        self.scorer.save(checkpoint)


class PatchPainter(nn.Module):
    """From visual tokens to the pixels of their patches; for training only.

    values: of a patch, channels times pixels.
    """

    def __init__(self, config: DecoderConfig, values: int):
        super().__init__()
        self._config = config
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(LAYERS))
        self.paint = nn.Linear(config.width, values)

    def forward(self, visual: Tensor, positions: Tensor) -> Tensor:
        """[B, V, width] at positions [B, V] -> [B, V, values]."""
        config = self._config
        rope = Rope.of(config, positions, visual.dtype)
        for layer in self.layers:
            visual = layer(visual, rope, None, slice(None))
        return self.paint(visual)


def straight_through(scores: Tensor) -> Tensor:
    """1 where positive, else 0; backward the gradient of the score itself."""
    mask = (scores > 0).to(scores.dtype)
    return mask + (scores - scores.detach())


def reconstruction_loss(
    painter: PatchPainter,
    visual: Tensor,
    positions: Tensor,
    scores: Tensor,
    things: Tensor,
    pixels: Tensor,
    grid: tuple[int, int],
) -> Tensor:
    """Return the loss of both halves.

    visual [B, V, width], positions and scores [B, V], things [B, V] bool: foreground.
    pixels [B, C, 6, H, W] as the vision encoders take them; the second vision encoder's, which has
    mean and deviation 0.5, are painted.
    """
    pictures = 0.5 + 0.5 * pixels[:, :, 3:].flatten(0, 1)
    side = pictures.shape[-1] // grid[1]
    mask = straight_through(scores)[..., None]
    halves = []
    for chosen, wanted in ((mask, things), (1 - mask, ~things)):
        painted = _picture(painter(chosen * visual, positions), grid, side)
        shown = wanted.to(pictures.dtype).view(-1, 1, *grid)
        shown = functional.interpolate(shown, scale_factor=side)
        target = pictures * shown
        error = SSIM_SHARE * (1 - ssim(painted, target))
        halves.append(0.5 * (error + (1 - SSIM_SHARE) * (painted - target).square().mean()))
    return halves[0] + halves[1]


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of pictures [N, C, H, W] in [0, 1] (Wang et al. 2004)."""
    def mean(x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, SSIM_WINDOW, stride=1)

    a, b = mean(first), mean(second)
    variance_a, variance_b = mean(first**2) - a**2, mean(second**2) - b**2
    covariance = mean(first * second) - a * b
    similarity = (2 * a * b + C1) * (2 * covariance + C2)
    return (similarity / ((a**2 + b**2 + C1) * (variance_a + variance_b + C2))).mean()


def _picture(values: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """[B, C * patches, 3 * side^2] -> [B * C, 3, H, W]."""
    rows, columns = grid
    patches = values.reshape(-1, rows * columns, values.shape[-1]).mT
    return functional.fold(patches, (rows * side, columns * side), side, stride=side)


@teaches('foreground', token_losses=('reconstruct',))
def _foreground(config: ModelConfig, losses: Mapping[str, float]) -> Foreground:
    """The stage has no settings of its own."""
    return Foreground(config)
