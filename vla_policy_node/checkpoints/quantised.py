"""Weights of few bits: recognised by what their library leaves in config.json and beside them.

Such weights are codes, which mean numbers only together with scales that each library keeps in a
way of its own. Read as numbers they load, and the policy acts wrongly. Those of bitsandbytes with
8 bits are turned back into numbers, all others are refused, by name and before any is read;
`runtime.loading` makes weights of few bits itself, out of plain ones.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice, takewhile
from pathlib import Path

import torch
from torch import Tensor

from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.reading import plain, shown

ADVICE = ('take the checkpoint as it was before (bfloat16, float16 or float32), and choose dtype '
          'int8 or int4 if memory is short')
# What stands behind the name of a layer, its weight or a group of weights, and who writes it.
# The first that fits: some names are part of several formats.
_INT8_SCALES, _INT8_LAYOUT = '.SCB', '.weight_format'  # beside `weight`, of bitsandbytes
_SIGNS = (
    ('.quant_state.bitsandbytes__nf4', 'bitsandbytes to 4 bits (nf4)'),
    ('.quant_state.bitsandbytes__fp4', 'bitsandbytes to 4 bits (fp4)'),
    ('.weight.absmax', 'bitsandbytes to 4 bits'),
    ('.weight.quant_map', 'bitsandbytes to 4 bits'),
    ('.weight.nested_absmax', 'bitsandbytes to 4 bits'),
    ('.weight.nested_quant_map', 'bitsandbytes to 4 bits'),
    ('.g_idx', 'GPTQ'),
    ('.qweight', 'GPTQ or AWQ'),
    ('.qzeros', 'GPTQ or AWQ'),
    ('.weight_packed', 'compressed-tensors'),
    ('.weight_shape', 'compressed-tensors'),
    ('.weight_zero_point', 'compressed-tensors'),
    ('._data', 'quanto'),
    ('._scale', 'quanto'),
    ('._shift', 'quanto'),
    ('._weight_qdata', 'torchao'),
    ('._weight_scale', 'torchao'),
    ('.W_q', 'HQQ'),
    ('.codebooks', 'AQLM'),
    ('.weight_scales', 'EETQ'),
    ('.weight_scale_2', 'ModelOpt'),
    ('.weight_blocks', 'a library that keeps blocks of 4-bit floats'),
    ('.scale_weight', 'a library that keeps 8-bit floats and their scales'),
    ('.weight_scale_inv', 'a library that keeps 8-bit floats and their scales'),
    ('.weight_scale', 'a library that keeps weights and their scales apart'),
    ('.input_scale', 'a library that keeps weights and their scales apart'),
)


def check_names(path: Path, names: Iterable[str]) -> None:
    """Raise ValueError if tensors of a file are parts of weights that cannot be read, by names."""
    found: dict[str, str] = {}
    for name in names:
        for sign, _ in _SIGNS:
            if name.endswith(sign):
                found.setdefault(sign, name)
    for sign, method in _SIGNS:
        if sign in found:
            raise ValueError(
                f'{path} holds weights that were quantised by {method}, going by its tensor '
                f'{plain(found[sign])}, and such codes cannot be read as numbers; {ADVICE}.')


def check_config(document: Mapping) -> None:
    """Raise ValueError if a parsed config.json says that the weights are quantised."""
    entries = Entries(document, 'config.json')
    parts = [(entries, '')] + [
        (entries.inside(part), f'{part}.') for part, value in entries.items().items()
        if part.endswith('_config') and isinstance(value, Mapping)]
    for part, place in parts:
        for key in ('quantization_config', 'compression_config'):
            if key not in part:
                continue
            chosen = part.value(key)
            if not isinstance(chosen, Mapping):
                raise part.error(key, 'an object', chosen)
            if method := _method(chosen):
                raise ValueError(
                    f'config.json says under {place}{key} that the weights were quantised by '
                    f'{method}, and such weights cannot be read; {ADVICE}. If they are plain '
                    'numbers again, remove that entry.')


def _method(chosen: Mapping) -> str:
    """What an entry of config.json says of who quantised, and how; '' if nobody did."""
    bits = [(key, size) for key, size in (
        ('load_in_8bit', '8 bits'), ('load_in_4bit', '4 bits'), ('_load_in_8bit', '8 bits'),
        ('_load_in_4bit', '4 bits')) if key in chosen]
    named = chosen.get('quant_method') or chosen.get('quant_library') or chosen.get('quant_algo')
    if bits and named in (None, 'bitsandbytes', 'BITS_AND_BYTES'):
        size = next((size for key, size in bits if chosen[key]), '')  # 8 bits can be read
        kind = chosen.get('bnb_4bit_quant_type')
        kind = f' ({plain(kind)})' if isinstance(kind, str) else ''
        return f'bitsandbytes to {size}{kind}' if size == '4 bits' else ''
    if named is None:
        return f'a library it does not name ({shown(chosen)})' if chosen else ''
    size = chosen.get('bits', chosen.get('w_bit'))
    size = f' to {size} bits' if type(size) is int and 0 < size < 64 else ''
    return f'{plain(named)}{size}'


def check_float8(path: Path, name: str, tensor: Tensor, names: Sequence[str]) -> None:
    """Raise ValueError for 8-bit floats with something beside them that may be a scale.

    Alone, or with a bias and adapters, they are numbers like others. names: of the file, in order.
    """
    if tensor.itemsize != 1 or not tensor.is_floating_point():
        return
    stem = name.removesuffix('weight')
    for other in takewhile(lambda other: other.startswith(stem),
                           islice(names, bisect_left(names, stem), None)):
        if other != name and not re.match('bias$|lora_', other[len(stem):]):
            raise ValueError(
                f'{path} stores {plain(name)} as 8-bit floats, and {plain(other)} beside it may '
                f'be their scale, which is not read; {ADVICE}.')


def is_scale(name: str) -> bool:
    """Whether a tensor says what the 8-bit codes beside it mean, and is no weight itself."""
    return name.endswith((_INT8_SCALES, _INT8_LAYOUT))


def int8_weights(
    path: Path, names: Iterable[str], get: Callable[[str], Tensor],
    scales: Mapping[str, Callable[[], Tensor]],
) -> dict[str, Callable[[], Tensor]]:
    """Find the weights that bitsandbytes keeps in 8 bits; name -> what reads it in float32.

    LLM.int8(): W = CB * SCB / 127, with CB as [out, in] int8, the largest of each row 127, and SCB
    as [out]. That library computes with inputs of 8 bits, too; here these stay as they are.
    scales: of all files of the model, name -> what reads it. ValueError for codes that cannot be
    understood.
    """
    found: dict[str, Callable[[], Tensor]] = {}
    for name in names:
        stem = name.removesuffix('.weight')
        beside, layout = stem + _INT8_SCALES, scales.get(stem + _INT8_LAYOUT)
        if stem == name or beside not in scales:
            continue
        codes, rows = get(name), scales[beside]()
        order = layout() if layout else torch.zeros(1)
        if codes.dtype is not torch.int8 or codes.ndim != 2 or not rows.is_floating_point() or (
            rows.shape != codes.shape[:1] or order.numel() != 1 or order.item()
        ):
            raise ValueError(
                f'{path} holds {plain(beside)}, as bitsandbytes writes it, and {plain(name)} is '
                f'no int8 matrix with a scale for each row; {ADVICE}.')

        def read(codes: Tensor = codes, rows: Tensor = rows) -> Tensor:
            return codes.float() * rows.float()[:, None] * (1 / 127)

        found[name] = read
    return found
