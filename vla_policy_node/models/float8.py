"""Products of 8-bit floats (e4m3), weights and activations, for GPUs that have them.

Each row of the activations and each output channel of the weights has a scale of its own, its
largest magnitude; activations are scaled as they come. Half the bytes and twice the arithmetic
rate of bfloat16 on GPUs of compute capability 8.9 and above. Elsewhere the same rounding is
computed in float32, slowly, to measure what it changes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

DTYPE = torch.float8_e4m3fn
_LARGEST = torch.finfo(DTYPE).max
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
    """A linear layer with an 8-bit weight; takes and returns the dtype of its input."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight, scale = quantise_rows(linear.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer('scale', scale)
        self.register_buffer('one', torch.ones((), device=weight.device), persistent=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        rows, scale = quantise_rows(x.flatten(0, -2))
        if x.is_cuda:
            # The kernels that apply scales row by row are slow on few rows; bfloat16 holds the
            # unscaled sums as well, and a compiler merges the factors with what comes next.
            y = torch._scaled_mm(
                rows, self.weight.T, scale_a=self.one, scale_b=self.one,
                out_dtype=torch.bfloat16, use_fast_accum=True)
            y = (y * (scale * self.scale.T)).to(x.dtype)
        else:
            y = functional.linear(rows.float() * scale, self.weight.float() * self.scale)
            y = y.to(x.dtype)
        y = y if self.bias is None else y + self.bias
        return y.unflatten(0, x.shape[:-1])


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """[N, M] -> the same in 8 bits, and the scale of each row, [N, 1] float32."""
    # Few operators: this runs before every product. Quotients cannot exceed the largest 8-bit
    # float by more than rounding, which the conversion takes back.
    largest = torch.linalg.vector_norm(x, torch.inf, dim=1, keepdim=True)
    scale = largest.float().clamp(min=1e-12) / _LARGEST
    return (x / scale).to(DTYPE), scale


def to_float8(model: nn.Module) -> nn.Module:
    """Replace the linear layers of the decoder in place, and return the model.

    The towers' products are too small to gain what scaling their inputs costs (docs/speed.md).
    """
    for module in list(model.language_model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and not any(
                side % _MULTIPLE for side in child.weight.shape
            ):
                setattr(module, name, Float8Linear(child))
    return model
