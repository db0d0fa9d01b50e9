"""Fewer, larger products: the same network with its weights put together.

One product for query, key and value, one for gate and up; the weights of the norms before them
and the layer scale behind the vision towers' products move into the products (Realtime-VLA,
arXiv 2510.26742, does so). Equal up to rounding: in float32 a few ulp, in bfloat16 the products
of weights are rounded once more. `docs/speed.md` says what it gains.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_policy_node.models.language_model import (
    DecoderLayer,
    RmsNorm,
    Rope,
    SelfAttention,
    SwiGlu,
)
from vla_policy_node.models.openvla_oft import OpenVlaOft
from vla_policy_node.models.towers import Block, LayerScale


class KernelRmsNorm(nn.Module):
    """`RmsNorm` as one call, with its weight or, where that is folded away, without."""

    def __init__(self, norm: RmsNorm, folded: bool):
        super().__init__()
        self.weight = None if folded else norm.weight
        self.width, self.eps = norm.weight.shape, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return functional.rms_norm(x, self.width, self.weight, self.eps)


class FusedSelfAttention(SelfAttention):
    """`SelfAttention` that makes queries, keys and values in one product.

    gain: [width], the weight of the norm before it. some_ask: only some rows will ask, so that
        queries stay a product of their own.
    """

    def __init__(self, attention: SelfAttention, gain: Tensor, some_ask: bool):
        nn.Module.__init__(self)
        self.heads = attention.heads
        self.o_proj = attention.o_proj
        first, second = attention.q_proj, (attention.k_proj, attention.v_proj)
        self.q_proj = _stack([first], gain) if some_ask else None
        self.kv_proj = _stack(second if some_ask else (first, *second), gain)

    def project(self, x: Tensor, rope: Rope, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of `rows`, keys and values of all, [B, heads, rows or T, head width]."""
        if self.q_proj is not None:
            key, value = map(self._heads, self.kv_proj(x).chunk(2, dim=-1))
            return self.queries(x, rope, rows), rope(key), value
        query, key, value = map(self._heads, self.kv_proj(x).chunk(3, dim=-1))
        return rope(query[:, :, rows], rows), rope(key), value

    def queries(self, x: Tensor, rope: Rope, rows: slice) -> Tensor:
        """Queries of `rows` alone, [B, heads, rows, head width]."""
        if self.q_proj is not None:
            return super().queries(x, rope, rows)
        query, _, _ = self.kv_proj(x[:, rows]).chunk(3, dim=-1)
        return rope(self._heads(query), rows)

    def bare_queries(self, x: Tensor) -> Tensor:
        """As in the base class; where queries are part of a larger product, all of it is made."""
        return self.kv_proj(x).chunk(3, dim=-1)[0] if self.q_proj is None else self.q_proj(x)

    def bare_keys(self, x: Tensor) -> Tensor:
        """Likewise; keys stand before the values."""
        return self.kv_proj(x).chunk(3 if self.q_proj is None else 2, dim=-1)[-2]


class FusedSwiGlu(nn.Module):
    """`SwiGlu` with gate and up in one product; gain: weight of the norm before it."""

    def __init__(self, mlp: SwiGlu, gain: Tensor):
        super().__init__()
        self.gate_up_proj = _stack([mlp.gate_proj, mlp.up_proj], gain)
        self.down_proj = mlp.down_proj

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(functional.silu(gate) * up)


@torch.no_grad()
def fuse(model: OpenVlaOft) -> OpenVlaOft:
    """Put the weights of `model` together, in place, and return it.

    For models that run `LanguageModel.forward`. The result cannot be saved as a checkpoint.
    """
    decoder = model.language_model
    for layer in decoder.layers:
        _fuse_layer(layer, some_ask=layer is decoder.layers[-1])
    decoder.norm = KernelRmsNorm(decoder.norm, folded=False)
    for tower in (model.vision_backbone.featurizer, model.vision_backbone.fused_featurizer):
        for block in tower.blocks:
            _fold_layer_scale(block)
    return model


def _fuse_layer(layer: DecoderLayer, some_ask: bool) -> None:
    before, between = layer.input_layernorm, layer.post_attention_layernorm
    layer.self_attn = FusedSelfAttention(layer.self_attn, before.weight, some_ask)
    layer.mlp = FusedSwiGlu(layer.mlp, between.weight)
    layer.input_layernorm = KernelRmsNorm(before, folded=True)
    layer.post_attention_layernorm = KernelRmsNorm(between, folded=True)


def _fold_layer_scale(block: Block) -> None:
    for name, linear in (('ls1', block.attn.proj), ('ls2', block.mlp.fc2)):
        layer_scale = getattr(block, name)
        if isinstance(layer_scale, LayerScale):
            scale = layer_scale.scale_factor
            for key, factor in (('weight', scale[:, None]), ('bias', scale)):
                folded = _product(getattr(linear, key), factor)
                setattr(linear, key, nn.Parameter(folded, requires_grad=False))
            setattr(block, name, nn.Identity())


def _stack(linears: tuple[nn.Linear, ...] | list[nn.Linear], gain: Tensor) -> nn.Linear:
    """Put layers without bias on top of each other; gain: factor of each input, [width]."""
    weight = torch.cat([_product(linear.weight, gain) for linear in linears])
    stacked = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device='meta')
    stacked.weight = nn.Parameter(weight, requires_grad=False)
    return stacked


def _product(weight: Tensor, factor: Tensor) -> Tensor:
    """Multiply in float32 at least, and round once, to the dtype of the weight."""
    precision = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(precision) * factor.to(precision)).to(weight.dtype)
