"""Fewer, larger operators: the same network with its weights put together.

One product for query, key and value, one for gate and up; the weights of the norms before them
and the layer scale behind the vision encoders' products move into the products (Realtime-VLA,
arXiv 2510.26742, does so). On a GPU rotation and attention are one kernel. Weights that matrix
units cannot read in whole words are filled up with zeros. Equal up to rounding: in float32 a few
ulp, in bfloat16 the products of weights are rounded once more. `docs/speed.md` says what it gains.
"""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_policy_node.compression.float8 import Float8Linear
from vla_policy_node.nn.heads import L1ActionHead
from vla_policy_node.nn.norms import RmsNorm
from vla_policy_node.nn.transformer import (
    ALL_ROWS,
    Decoder,
    DecoderLayer,
    GatedMlp,
    Place,
    Rope,
    SelfAttention,
    activate,
)
from vla_policy_node.nn.vision import Attention, Block, LayerScale, PatchEmbedding, VisionEncoder

try:
    from vla_policy_node.runtime import kernels
except ImportError:  # triton comes with torch where torch supports GPUs
    kernels = None

_FEW_ROWS = 256  # up to which what is made for few rows wins, as measured (docs/speed.md)
Network = TypeVar('Network', bound=nn.Module)
_WORD = 8  # values of 16 bits in what matrix units read at once


class KernelRmsNorm(nn.Module):
    """`RmsNorm` as one call, with its weight or, where that is folded away, without."""

    def __init__(self, norm: RmsNorm, folded: bool):
        super().__init__()
        self.weight = None if folded else nn.Parameter(norm.gain, requires_grad=False)
        self.width, self.eps = norm.weight.shape, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return functional.rms_norm(x, self.width, self.weight, self.eps)


class FusedSelfAttention(SelfAttention):
    """`SelfAttention` that makes queries, keys and values in one product.

    gain: [width], the weight of the norm before it, None for one that stays as it is. some_ask:
        only some rows will ask, so that queries stay a product of their own.
    """

    def __init__(self, attention: SelfAttention, gain: Tensor | None, some_ask: bool):
        nn.Module.__init__(self)
        self.heads, self.head_width = attention.heads, attention.head_width
        self.query_width, self.key_width = attention.query_width, attention.key_width
        self.o_proj = LongProduct(attention.o_proj)
        first, second = attention.q_proj, (attention.k_proj, attention.v_proj)
        self.q_proj = _stack([first], gain) if some_ask else None
        self.kv_proj = _stack(second if some_ask else (first, *second), gain)

    def forward(
        self, x: Tensor, rope: Rope, mask: Tensor | None, rows: slice, place: Place | None = None
    ) -> Tensor:
        """As in the base class; few rows, which all ask and nobody watches, take one kernel."""
        queries, keys = self.query_width, self.key_width
        if (place is not None or self.q_proj is not None or rows != ALL_ROWS or queries != keys
                or x.shape[1] > _FEW_ROWS or not _kernel_fits(x, mask)):
            return super().forward(x, rope, mask, rows, place)
        return self.o_proj(kernels.attend(
            self.kv_proj(x), self.heads, (rope.cos, rope.sin), mask, _factor(self.o_proj)))

    def project(self, x: Tensor, rope: Rope, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of `rows`, keys and values of all, [B, heads, rows or T, head width]."""
        if self.q_proj is not None:
            key, value = map(self._heads, self.kv_proj(x).chunk(2, dim=-1))
            return self.queries(x, rope, rows), rope(key), value
        queries, keys = self.query_width, self.key_width
        query, key, value = map(self._heads, self.kv_proj(x).split([queries, keys, keys], dim=-1))
        return rope(query[:, :, rows], rows), rope(key), value

    def bare_queries(self, x: Tensor) -> Tensor:
        """As in the base class."""
        return self._part(x, slice(self.query_width)) if self.q_proj is None else self.q_proj(x)

    def bare_keys(self, x: Tensor) -> Tensor:
        """Likewise."""
        keys = self.key_width
        return self._part(x, slice(-2 * keys, -keys))

    def _part(self, x: Tensor, columns: slice) -> Tensor:
        """Some of what the stacked product makes. In 8 bits all is made."""
        if isinstance(self.kv_proj, nn.Linear):
            return functional.linear(x, self.kv_proj.weight[columns])
        return self.kv_proj(x)[..., columns]


class KernelAttention(Attention):
    """`Attention` of a vision encoder as one kernel on a GPU."""

    def __init__(self, attention: Attention):
        nn.Module.__init__(self)
        self.heads, self.qkv, self.proj = attention.heads, attention.qkv, attention.proj

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, width] -> [B, T, width]; the mask is added to the logits."""
        if not _kernel_fits(x, mask):
            return super().forward(x, mask)
        return self.proj(
            kernels.attend(self.qkv(x), self.heads, None, mask, _factor(self.proj)))


class FusedGatedMlp(nn.Module):
    """`GatedMlp` with gate and up in one product; gain: as in `FusedSelfAttention`."""

    def __init__(self, mlp: GatedMlp, gain: Tensor | None):
        super().__init__()
        self.activation = mlp.activation
        self.gate_up_proj = _stack([mlp.gate_proj, mlp.up_proj], gain)
        self.down_proj = LongProduct(mlp.down_proj)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        gate_up = self.gate_up_proj(x)
        if (_kernel_fits(x) and isinstance(self.down_proj, Float8Linear)
                and self.activation == 'silu'):
            return self.down_proj.multiply(*kernels.gate_rows(gate_up))
        gate, up = gate_up.chunk(2, dim=-1)
        return self.down_proj(activate(gate, self.activation) * up)


class PatchProduct(nn.Module):
    """`PatchEmbedding` as a product: a convolution of three channels is slow on a GPU."""

    def __init__(self, embedding: PatchEmbedding):
        super().__init__()
        convolution = embedding.proj
        self.patch_px = convolution.kernel_size[0]
        self.proj = WholeWords(convolution.weight.flatten(1), convolution.bias)

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, H/patch * W/patch, width], row by row."""
        batch, channels, height, width = image.shape
        side = self.patch_px
        patches = image.reshape(batch, channels, height // side, side, width // side, side)
        return self.proj(patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))


class LongProduct(nn.Linear):
    """A linear layer whose product few rows compute in two halves, each over half of the inputs.

    That gives a GPU twice as many tiles to share. The sum of both costs nothing where a compiler
    merges it with what comes next, so only there. linear: without bias.
    """

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, None
        self._halves = linear.in_features % (2 * _WORD) == 0

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        rows = x.flatten(0, -2)
        if not (self._halves and len(rows) <= _FEW_ROWS and torch.compiler.is_compiling()
                and x.is_cuda and x.element_size() == 2):
            return super().forward(x)
        halves = rows.unflatten(1, (2, -1)).transpose(0, 1)
        weight = self.weight.unflatten(1, (2, -1)).permute(1, 2, 0)
        y = torch.bmm(halves, weight, out_dtype=torch.float32).sum(dim=0)
        return y.to(x.dtype).unflatten(0, x.shape[:-1])


class WholeWords(nn.Module):
    """A linear layer with zeros around its weight, so that inputs and outputs fill words."""

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.outputs, inputs = weight.shape
        self._inputs, outputs = -inputs % _WORD, -self.outputs % _WORD
        weight = functional.pad(weight, (0, self._inputs, 0, outputs))
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(functional.pad(bias, (0, outputs)), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        x = functional.pad(x, (0, self._inputs)) if self._inputs else x
        return functional.linear(x, self.weight, self.bias)[..., : self.outputs]


@torch.no_grad()
def fuse(model: Network) -> Network:
    """Put the weights of `model` together, in place, and return it.

    Its decoders must run `Decoder.forward`. The result cannot be saved as a checkpoint.
    """
    for part in [*model.modules()]:
        if isinstance(part, Decoder):
            for layer in part.layers:
                _fuse_layer(cast(DecoderLayer, layer), some_ask=layer is part.layers[-1])
            part.norm = _one_call(part.norm, folded=False)
        elif isinstance(part, VisionEncoder):
            _fuse_encoder(part)
        elif isinstance(part, L1ActionHead):
            part.fc2 = WholeWords(part.fc2.weight, part.fc2.bias)
    return model


def _fuse_layer(layer: DecoderLayer, some_ask: bool) -> None:
    before, between = layer.input_layernorm, layer.post_attention_layernorm
    layer.self_attn = FusedSelfAttention(layer.self_attn, _gain(before), some_ask)
    layer.mlp = FusedGatedMlp(layer.mlp, _gain(between))
    layer.input_layernorm = _one_call(before, folded=True)
    layer.post_attention_layernorm = _one_call(between, folded=True)


def _gain(norm: nn.Module) -> Tensor | None:
    """What a norm multiplies with, if that is always the same."""
    return norm.gain if isinstance(norm, RmsNorm) else None


def _one_call(norm: nn.Module, folded: bool) -> nn.Module:
    """A norm as one call; one that a condition modulates stays as it is."""
    return KernelRmsNorm(norm, folded) if isinstance(norm, RmsNorm) else norm


def _fuse_encoder(encoder: VisionEncoder) -> None:
    encoder.patch_embed = PatchProduct(encoder.patch_embed)
    for block in encoder.blocks:
        block.attn = KernelAttention(block.attn)
        _fold_layer_scale(block)


def _fold_layer_scale(block: Block) -> None:
    for name, linear in (('ls1', block.attn.proj), ('ls2', block.mlp.fc2)):
        layer_scale = getattr(block, name)
        if isinstance(layer_scale, LayerScale):
            scale = layer_scale.scale_factor
            for key, factor in (('weight', scale[:, None]), ('bias', scale)):
                folded = _product(getattr(linear, key), factor)
                setattr(linear, key, nn.Parameter(folded, requires_grad=False))
            setattr(block, name, nn.Identity())


def _stack(
    linears: tuple[nn.Linear, ...] | list[nn.Linear], gain: Tensor | None
) -> nn.Linear:
    """Put layers without bias on top of each other; gain: factor of each input, [width]."""
    weight = torch.cat([
        linear.weight if gain is None else _product(linear.weight, gain) for linear in linears])
    stacked = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device='meta')
    stacked.weight = nn.Parameter(weight, requires_grad=False)
    return stacked


def _factor(linear: nn.Module) -> Tensor | None:
    """What a kernel multiplies with before it rounds for a product of 8-bit floats."""
    return linear.factor if isinstance(linear, Float8Linear) else None


def _kernel_fits(x: Tensor, mask: Tensor | None = None) -> bool:
    """Whether the kernel takes this: on a GPU, and the mask the same for all rows that ask."""
    return kernels is not None and x.is_cuda and (mask is None or mask.shape[2] == 1)


def _product(weight: Tensor, factor: Tensor) -> Tensor:
    """Multiply in float32 at least, and round once, to the dtype of the weight."""
    precision = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(precision) * factor.to(precision)).to(weight.dtype)
