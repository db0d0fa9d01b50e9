"""Weights of 8 or 4 bits for small devices; the arithmetic stays bfloat16.

Weight-only, by torchao: each output channel (int8) or each group of 32 inputs (int4) has a scale
of its own. Embeddings, norms, biases and convolutions stay as they are. int4 is for the decoder,
which is nine tenths of a public checkpoint; everything else becomes int8.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

BITS = {'int8': 8, 'int4': 4}
GROUP_SIZE = 32
# Of the bits of bfloat16: 4 and, per group, a scale and a zero point of 16.
INT4_SHARE = (4 + 2 * 16 / GROUP_SIZE) / 16
_DECODER = 'language_model.layers.'


def make_quantiser(model: nn.Module, dtype: str, device: torch.device) -> Callable:
    """Return a function from (name, bfloat16 weight on the device) to the weight to use.

    model: may be on the meta device; says which names are weights of linear layers. dtype: one
        of BITS.
    ValueError with one sentence if torchao is not there, or cannot do it on this device.
    """
    quantize, configs = _import()
    if dtype == 'int4' and device.type != 'cuda':
        raise ValueError('dtype int4 needs a CUDA device; on the CPU, use int8.')
    linear_weights = {
        f'{name}.weight' for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }

    def quantise(name: str, weight: Tensor) -> Tensor:
        # torchao cannot take inputs of one number, whose weights are few anyway.
        if name not in linear_weights or weight.shape[1] == 1:
            return weight
        small = dtype == 'int4' and name.startswith(_DECODER)
        small = small and weight.shape[1] % GROUP_SIZE == 0
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device='meta')
        layer.weight = nn.Parameter(weight, requires_grad=False)
        quantize(layer, configs['int4' if small else 'int8']())
        return layer.weight

    return quantise


def round_to_int4(weight: Tensor) -> Tensor:
    """[N, M] -> the same, rounded as int4 weights are: 16 levels from least to most per group."""
    groups = weight.float().unflatten(1, (-1, GROUP_SIZE))
    low, high = groups.aminmax(dim=2, keepdim=True)
    step = ((high - low) / 15).clamp(min=1e-12)
    return (((groups - low) / step).round() * step + low).flatten(1).to(weight.dtype)


def imitate_int4(small: nn.Module, plain: nn.Module) -> None:
    """Give the decoder of `small` the weights of `plain`, rounded to 4 bits but kept in 16.

    For what int4 changes, on devices that cannot run it.
    """
    target = small.get_submodule('language_model.layers')
    for name, module in plain.get_submodule('language_model.layers').named_modules():
        if isinstance(module, nn.Linear) and module.weight.shape[1] % GROUP_SIZE == 0:
            rounded = round_to_int4(module.weight.detach())
            target.get_submodule(name).weight = nn.Parameter(rounded, requires_grad=False)


def _import() -> tuple[Callable, dict[str, Callable]]:
    # It reports each of its compiled parts that is for another kind of machine, and torch what
    # it registers.
    for logger in ('torchao', 'torch.utils._pytree'):
        logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        from torchao.quantization import (
            Int4WeightOnlyConfig,
            Int8WeightOnlyConfig,
            quantize_,
        )
    except ImportError as error:
        raise ValueError(
            'dtype int8 and int4 need the package torchao: pip install torchao==0.18.0.'
        ) from error
    return quantize_, {
        'int8': Int8WeightOnlyConfig,
        'int4': lambda: Int4WeightOnlyConfig(
            group_size=GROUP_SIZE, int4_packing_format='tile_packed_to_4d'
        ),
    }
