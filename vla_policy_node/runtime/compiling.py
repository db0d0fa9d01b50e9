"""Hands a network to `torch.compile` in parts, so that compiling takes seconds and misses nothing.

Block by block, because all of a kind share what is compiled: the compiler takes minutes for 32
layers in a row, for the same kernels.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn

from vla_policy_node.nn.heads import L1ActionHead
from vla_policy_node.nn.transformer import Decoder, DecoderLayer
from vla_policy_node.nn.vision import Block, VisionEncoder
from vla_policy_node.runtime.fusing import PatchProduct

# The compiler would fill up operands to sizes that matrix units do not need, with copies.
OPTIONS = {
    'dynamic': False,
    'options': {'shape_padding': False, 'comprehensive_padding': False},
}
# Forms of one block, beyond which torch would quietly run it uncompiled: first, last and any other
# in each bucket of visual rows, for every length of prompt.
_FORMS = 4096
Network = TypeVar('Network', bound=nn.Module)


def compile_parts(model: Network) -> Network:
    """Another network on the same weights, with compiled blocks, head and embedding of patches."""
    weights = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    model = copy.deepcopy(model, weights)
    for module in [*model.modules()]:
        if isinstance(module, PatchProduct | L1ActionHead):
            module.compile(**OPTIONS)
        elif isinstance(module, VisionEncoder):
            module.blocks = _chain(module.blocks)
        elif isinstance(module, Decoder):
            module.layers = _chain(module.layers)
    return model


def lifted_limits() -> AbstractContextManager:
    """Lift torch's limits, which belong to a thread, where something may be compiled."""
    return torch._dynamo.config.patch(
        recompile_limit=_FORMS, accumulated_recompile_limit=_FORMS)


class Link(nn.Module):
    """A compiled block that leaves its last addition to the norm of the next one.

    A compiler that sees one block at a time could not merge the two. So the blocks of a chain
    hand on a sum that is not done yet, and only the last one returns a tensor.
    """

    def __init__(self, block: Block | DecoderLayer, last: bool):
        super().__init__()
        self.block, self.last = block, last
        self._advance = torch.compile(block.advance, **OPTIONS)

    def forward(
        self, x: Tensor | tuple[Tensor, Tensor], *arguments: object
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As the block; x: what the link before returned."""
        x, added = x if isinstance(x, tuple) else (x, None)
        x, added = self._advance(x, added, *arguments)
        return x + added if self.last else (x, added)


def _chain(blocks: nn.ModuleList) -> nn.ModuleList:
    return nn.ModuleList(Link(block, last=block is blocks[-1]) for block in blocks)
