"""SQAP-VLA: token pruning that survives quantised attention, with 4-bit arithmetic (2025).

arXiv 2509.09090, from summaries; its code was not read. Three rules choose the tokens, at one
budget: those with the most attention; those around the robot; and, to fill up, those that lie
farthest from all chosen ones on the grid of patches. Weights and activations have 4 bits, after a
Hadamard rotation that spreads outliers: (X H)(H' W) = X W.

Left open by the sources: all numbers (compared in docs/constants), and whether scales are per
tensor or per channel (here: per output channel of the weights, per row of the activations).
Different here: a summary says that the robot is found by projecting the arm's known position into
the picture with the camera's parameters, which an observation does not hold. Here it is what
moves: the patches of the third-person picture that changed most since the last step, and their
neighbours. The rule that a top token must stay one under
quantisation is kept by ranking with the attention of the model that runs, which is the quantised
one.

The 4-bit arithmetic is exact in its results and not in its speed: values are rounded to 16 levels
and multiplied as floats, because no processor this was written for multiplies 4-bit integers.
Weights rest as one byte each. FLOPs are counted as if they were full, plus the rotation.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_policy_node.acceleration.base import Capability, Effect, Step
from vla_policy_node.acceleration.selection import (
    Budget,
    Selection,
    attention_received,
    patches,
    top,
    union,
)
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.lazy_attention import LazyAttention
from vla_policy_node.nn.sequence import TokenSequence

LARGEST_BLOCK = 128  # of the rotation; larger ones spread more and cost more
LEVELS = 7
RING = 9  # patches of one that moved and its neighbours


class SqapVla(Selection):
    """Keeps tokens by three rules; runs the language model in 4 bits.

    keep: share of the tokens, 1.0 keeps all. count: so many instead, 0 for the share.
    attended: share of the kept ones that attention chooses, of the prompt in the layer before
        the drop.
    robot: how many patches count as the robot, their neighbours not counted; 0 for none.
    layer: first layer without the others.
    four_bits: quantise weights and activations of the language model's layers.
    """

    name = 'sqap_vla'
    needs = frozenset({Capability.VISUAL_TOKENS, Capability.LAYERS})
    does = frozenset({Effect.DROPS_TOKENS_LATER, Effect.READS_ATTENTION, Effect.CHANGES_WEIGHTS})
    off: ClassVar = {'keep': 1.0, 'attended': 1.0, 'four_bits': False}
    open_settings: ClassVar = {
        'keep': (0.5,), 'attended': (0.125, 0.875), 'robot': (0, 16), 'layer': (2, 3),
        'four_bits': (False,),
    }

    def __init__(
        self,
        *,
        keep: float = 0.25,
        count: int = 0,
        attended: float = 0.5,
        robot: int = 6,
        layer: int = 1,
        four_bits: bool = True,
    ):
        super().__init__()
        if layer < 1 or robot < 0 or not 0 <= attended <= 1:
            raise ValueError(
                'sqap_vla needs a layer of at least 1, robot of at least 0 and attended in '
                f'[0, 1], not {layer}, {robot} and {attended}.'
            )
        self.budget = Budget(self.name, keep, count)
        self.attended = attended
        self.robot = robot
        self.layer = layer
        self.four_bits = four_bits
        if not four_bits:
            self.does = self.does - {Effect.CHANGES_WEIGHTS}
        self._config: ModelConfig  # from `prepare` on
        self._quantised: list[FourBitLinear] = []
        self._pixels: Tensor | None = None
        self._protected = torch.empty(0, dtype=torch.int64)
        self._attention: Tensor  # of the last pass

    def prepare(self, checkpoint: Path, config: ModelConfig) -> None:
        """Refuse a layer that the model does not have."""
        self._check_layer(self.layer, config)
        self._config = config
        budget = self.budget.of(config.visual_tokens)
        if round(self.attended * budget) + RING * self.robot > budget:  # the robot may exceed it
            self.does = self.does | {Effect.COST_VARIES}

    def change_weights(self, network: nn.Module) -> None:
        """Quantise the linear layers of the decoder."""
        if not self.four_bits:
            return
        layers = network.get_submodule('language_model.layers')
        for name, weight in layers.named_parameters():
            if type(weight.data) is not Tensor or weight.element_size() == 1:
                raise ValueError(
                    f'sqap_vla makes weights of 4 bits, and {name} has few bits already; choose '
                    'dtype float32 or bfloat16, or its setting four_bits=false.')
        for module in list(layers.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, FourBitLinear(child))
                    self._quantised.append(getattr(module, name))

    def begin_step(self, step: Step) -> None:
        """Find the robot: what moved."""
        pixels = patches(step.images[:1], self._config)
        if self._pixels is not None and self.robot:
            moved = (pixels - self._pixels).abs().mean(dim=1)
            seeds = top(moved, self.robot)
            self._protected = ring(seeds[moved[seeds] > 0].cpu(), self._config.grid)
        self._pixels = pixels

    def begin_pass(self) -> None:
        """Forget the last pass, and count its rotations from 0."""
        super().begin_pass()
        for linear in self._quantised:
            linear.rows = 0

    def watch_attention(
        self, index: int, sequence: TokenSequence, attention: LazyAttention
    ) -> None:
        """Rank by what the prompt attends to, one layer before the drop."""
        if index == self.layer - 1:
            self._attention, self._flops = attention_received(
                attention, sequence, sequence.span('prompt'))

    def before_layer(self, index: int, sequence: TokenSequence) -> TokenSequence:
        """Keep the union of the three groups; the robot stays even beyond the budget."""
        if index != self.layer:
            return sequence
        tokens = sequence.visual_tokens
        robot = torch.isin(tokens, self._protected.to(tokens.device)).nonzero().flatten()
        attention = self._attention[tokens]
        count = self.budget.of(sequence.visual_total)
        chosen = union(top(attention, round(self.attended * count)), robot)
        kept = spread(chosen.cpu(), self._places(tokens.cpu()), count).to(tokens.device)
        return self._keep(sequence, kept, attention, index)

    def _places(self, tokens: Tensor) -> Tensor:
        """Camera, row and column of each token, [V, 3]; cameras are far apart."""
        rows, columns = self._config.grid
        camera, patch = tokens // (rows * columns), tokens % (rows * columns)
        far = 2 * (rows + columns)
        return torch.stack([camera * far, patch // columns, patch % columns], dim=1).float()

    def report(self):
        """The selection, and the rotations in its FLOPs."""
        self._flops += sum(linear.rows * linear.rotation_flops for linear in self._quantised)
        for linear in self._quantised:
            linear.rows = 0
        return super().report()

    def reset(self) -> None:
        """Forget the last picture."""
        super().reset()
        self._pixels = None
        self._protected = torch.empty(0, dtype=torch.int64)


class FourBitLinear(nn.Module):
    """A linear layer without bias whose weights and inputs are rounded to 4 bits, rotated before.

    rows: how many it worked on, for whoever counts. rotation_flops: of one row.
    """

    rotation: Tensor
    rounded: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach()
        block = block_of(weight.shape[1])
        self.register_buffer('rotation', hadamard(block).to(weight))
        rounded, scale = four_bits(self._rotate(weight))
        self.register_buffer('rounded', rounded.to(torch.int8))
        self.register_buffer('scale', scale)
        self.rows = 0
        self.rotation_flops = 2 * weight.shape[1] * block

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        self.rows += x.shape[:-1].numel()
        values, scale = four_bits(self._rotate(x))
        product = functional.linear(values, self.rounded.to(values.dtype))
        return product * scale * self.scale.mT

    def _rotate(self, x: Tensor) -> Tensor:
        block = len(self.rotation)
        return (x.unflatten(-1, (-1, block)) @ self.rotation).flatten(-2)


def four_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to integers from -7 to 7 and its scale; their product is about x."""
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-8) / LEVELS
    return (x / scale).round(), scale


def hadamard(size: int) -> Tensor:
    """Orthogonal matrix of +-1 / sqrt(size) (Sylvester); size is a power of 2."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / size**0.5


def block_of(width: int) -> int:
    """Largest power of 2 that divides the width, at most LARGEST_BLOCK."""
    return min(width & -width, LARGEST_BLOCK)


def ring(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The tokens of one camera and their neighbours on the grid."""
    mask = torch.zeros(1, grid[0] * grid[1]).index_fill(1, tokens, 1.0).view(1, *grid)
    return functional.max_pool2d(mask, 3, stride=1, padding=1).flatten().nonzero().flatten()


def spread(chosen: Tensor, places: Tensor, count: int) -> Tensor:
    """Fill up to `count` rows, always by the one that lies farthest from all chosen; ascending.

    chosen: [M] rows of places [V, D]; with none, the first row begins.
    """
    missing = min(count, len(places)) - len(chosen)
    if missing <= 0:
        return chosen
    kept = torch.zeros(len(places), dtype=torch.bool)
    kept[chosen if len(chosen) else 0] = True
    missing -= 0 if len(chosen) else 1
    distance = torch.cdist(places, places[kept]).amin(dim=1)
    for _ in range(missing):
        farthest = distance.masked_fill(kept, -1).argmax()
        kept[farthest] = True
        distance = distance.minimum((places - places[farthest]).norm(dim=1))
    return kept.nonzero().flatten()
