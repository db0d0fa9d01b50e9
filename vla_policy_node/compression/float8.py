"""Products of 8-bit floats (e4m3), weights and activations, for GPUs that have them.

The precision of e4m3 is relative over four decades, so an upper bound suffices as scale. After a
norm there is one: in rows of mean square 1 no value exceeds the root of their width, and none of
their products exceeds what the weights allow (Cauchy-Schwarz), up to the rounding of both. Only
the gated rows of the decoder are searched for their largest value at run time.

Half the bytes and twice the arithmetic rate of bfloat16 on GPUs of compute capability 8.9 and
above. Elsewhere the same rounding is computed in float32, slowly, to measure what it changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_policy_node.nn.norms import AdaptiveRmsNorm
from vla_policy_node.nn.transformer import DecoderLayer
from vla_policy_node.nn.vision import Block

DTYPE = torch.float8_e4m3fn
_LARGEST = torch.finfo(DTYPE).max
# Norm, part behind it, products of the norm's result, product of what is made of the last one.
_PARTS = {
    Block: (('norm1', 'attn', ('qkv',), 'proj'), ('norm2', 'mlp', ('fc1',), 'fc2')),
    DecoderLayer: (
        ('input_layernorm', 'self_attn', ('q_proj', 'k_proj', 'v_proj', 'kv_proj'), 'o_proj'),
        ('post_attention_layernorm', 'mlp', ('gate_proj', 'up_proj', 'gate_up_proj'), 'down_proj'),
    ),
}
_STACKED = ('qkv', 'kv_proj', 'gate_up_proj')  # what our kernels read, without a compiler between
_ROUNDED = (1 + 2.0**-4) ** 2  # how much larger rounding may make a product of rounded values
_MULTIPLE = 16  # rows and columns of a weight that the hardware multiplies
_CAPABILITY = (8, 9)  # of the first GPUs with such products


def check_device(device: torch.device) -> None:
    """Raise ValueError with one sentence if the GPU has no products of 8-bit floats."""
    if device.type == 'cuda' and torch.cuda.get_device_capability(device) < _CAPABILITY:
        raise ValueError(
            f'{torch.cuda.get_device_name(device)} does not multiply 8-bit floats; choose dtype '
            'bfloat16, or int8 to save memory.'
        )


class Float8Linear(nn.Module):
    """A linear layer with an 8-bit weight; takes and returns the dtype of its input.

    bound: what no input exceeds; None: each row is searched for its largest value. by_channel:
    outputs have scales of their own, which whoever reads them applies on the way.
    factor: what inputs are multiplied with before they are rounded, None without a bound.
    """

    channels: Tensor | None
    weight_scale: Tensor
    input_scale: Tensor
    factor: Tensor | None

    def __init__(self, linear: nn.Linear, bound: float | None = None, by_channel: bool = True):
        super().__init__()
        # Tensors, not numbers: layers that differ in these alone share what is compiled.
        one = torch.ones((), device=linear.weight.device)
        weight, scale = quantise_rows(
            linear.weight.detach() if by_channel else linear.weight.detach().flatten()[None])
        self.weight = nn.Parameter(weight.view(linear.weight.shape), requires_grad=False)
        self.bias = linear.bias
        self.register_buffer('channels', scale[:, 0] if by_channel else None)
        self.register_buffer('weight_scale', one if by_channel else scale[0, 0])
        self.register_buffer('input_scale', one if bound is None else one * bound / _LARGEST)
        self.register_buffer('factor', None if bound is None else one * _LARGEST / bound)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]; x of 8 bits was multiplied with `factor` already."""
        if x.dtype == DTYPE:
            return self.multiply(x)
        if self.factor is not None:
            return self.multiply((x * self.factor).to(DTYPE)).to(x.dtype)
        rows, scale = quantise_rows(x.flatten(0, -2))
        return self.multiply(rows, scale).to(x.dtype).unflatten(0, x.shape[:-1])

    def multiply(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Rounded [..., in] -> [..., out] bfloat16; scale: [..., 1], of each row."""
        rows = x.flatten(0, -2)
        # Kernels that apply scales of rows and channels to the operands are slow on few rows; the
        # compiler merges such factors of the result, and the bias, with what comes next.
        factors = [factor for factor in (self.channels, scale) if factor is not None]
        if x.is_cuda:
            y = torch._scaled_mm(
                rows, self.weight.T, scale_a=self.input_scale, scale_b=self.weight_scale,
                bias=None if factors else self.bias, out_dtype=torch.bfloat16,
                use_fast_accum=True)
        else:
            y = functional.linear(
                rows.float() * self.input_scale, self.weight.float() * self.weight_scale,
                None if factors or self.bias is None else self.bias.float())
        y = y.unflatten(0, x.shape[:-1])
        for factor in factors:
            y = y * factor
        return (y + self.bias if factors and self.bias is not None else y).to(torch.bfloat16)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """[N, M] -> the same in 8 bits, and the scale of each row, [N, 1] float32.

    Quotients cannot exceed the largest 8-bit float by more than rounding, which the conversion
    takes back.
    """
    largest = torch.linalg.vector_norm(x, torch.inf, dim=1, keepdim=True)
    scale = largest.float().clamp(min=1e-12) / _LARGEST
    return (x / scale).to(DTYPE), scale


@torch.no_grad()
def to_float8(model: nn.Module) -> nn.Module:
    """Replace the linear layers of vision encoders and decoder in place, and return the model.

    ValueError with one sentence if a norm has no bound.
    """
    for layer in list(model.modules()):
        for norm, part, first, second in _PARTS.get(type(layer), ()):
            _replace(getattr(layer, norm), getattr(layer, part), first, second)
    return model


def _replace(norm: nn.Module, part: nn.Module, first: Sequence[str], second: str) -> None:
    """Replace products of the norm's result, `first`, and one of what is made of the last."""
    linears = {
        name: child for name, child in part.named_children() if isinstance(child, nn.Linear)}
    first = [name for name in first if name in linears]
    bounds: dict[str, float | None] = {
        name: reach(norm, linears[name].in_features) for name in first}
    # Attention averages, a GELU shrinks; a gate multiplies.
    bounds[second] = None if second == 'down_proj' else reach(
        norm, linears[second].in_features, linears[first[-1]])
    for name, bound in bounds.items():
        if not any(side % _MULTIPLE for side in linears[name].weight.shape):
            by_channel = name not in _STACKED
            setattr(part, name, Float8Linear(linears[name], bound, by_channel))


def reach(norm: nn.Module, width: int, linear: nn.Linear | None = None) -> float:
    """What no value of the norm's result exceeds, or none of the last `width` of its product."""
    if isinstance(norm, AdaptiveRmsNorm):
        raise ValueError(
            'dtype float8 needs norms whose largest result is known, and a condition changes '
            'those of this policy; choose dtype bfloat16, or int8 to save memory.')
    shift = getattr(norm, 'bias', None)
    gain = getattr(norm, 'gain', getattr(norm, 'weight', None))  # 1 + weight, for some norms
    gain = 1.0 if gain is None else gain.float()
    if linear is None:
        largest = torch.as_tensor(gain).abs() * width**0.5
        largest = largest if shift is None else largest + shift.float().abs()
    else:
        weight = linear.weight[-width:].float()
        largest = (weight * gain).norm(dim=1) * linear.in_features**0.5
        if shift is not None:
            largest = largest + (weight @ shift.float() + linear.bias[-width:].float()).abs()
        largest = largest * _ROUNDED
    return max(float(largest.max()), 1e-12)
