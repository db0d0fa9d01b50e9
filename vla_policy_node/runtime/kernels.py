"""What no library does in one kernel on a GPU, in Triton.

Attention that rotates, and a gate that rounds to 8 bits. With a sequence of 168 rows their time is
that of launching and of the first bytes to come, so each stands for several kernels and the copies
between them (docs/speed.md).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2_E = 1.4426950408889634
_LARGEST = torch.finfo(torch.float8_e4m3fn).max
_QUERIES, _KEYS, _WARPS, _STAGES = 64, 64, 4, 2  # of a tile of attention, as measured


def attend(
    qkv: Tensor,
    heads: int,
    rotation: tuple[Tensor, Tensor] | None = None,
    bias: Tensor | None = None,
    factor: Tensor | None = None,
) -> Tensor:
    """Let every row attend to every row, [B, T, 3 width] -> [B, T, width].

    FlashAttention's algorithm (Dao et al. 2022), a tile of queries per program. qkv: contiguous,
    queries, keys and values of all heads, as one product wrote them. rotation: cosines and sines
    of `nn.transformer.Rope`, [B or 1, 1, T, head width]. bias: [B or 1, 1, 1, T] on the logits of
    each key; -inf hides one, but never all of the first tile. factor: a number; the result times
    this is rounded to 8 bits.
    """
    batch, rows, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    out = qkv.new_empty(
        batch, rows, width, dtype=qkv.dtype if factor is None else torch.float8_e4m3fn)
    head = width // heads
    part = head // 2 if rotation else head
    cos, sin = rotation or (qkv, qkv)
    _attend[(triton.cdiv(rows, _QUERIES), heads, batch)](
        qkv, cos, sin, qkv if bias is None else bias, qkv if factor is None else factor, out,
        rows, rows * head * (cos.shape[0] > 1),
        0 if bias is None or bias.shape[0] == 1 else rows,
        WIDTH=width, HEAD=head, PART=part, PADDED=max(16, triton.next_power_of_2(part)),
        VALUES=max(16, triton.next_power_of_2(head)), SCALE=_LOG2_E / head**0.5, LOG2_E=_LOG2_E,
        ROTATED=rotation is not None, BIASED=bias is not None, ROUNDED=factor is not None,
        QUERIES=_QUERIES, KEYS=_KEYS, num_warps=_WARPS, num_stages=_STAGES,
    )
    return out


@triton.jit
def _attend(
    qkv, cos, sin, bias, factor, out, rows, rotation_step, bias_step,
    WIDTH: tl.constexpr, HEAD: tl.constexpr, PART: tl.constexpr, PADDED: tl.constexpr,
    VALUES: tl.constexpr, SCALE: tl.constexpr, LOG2_E: tl.constexpr, ROTATED: tl.constexpr,
    BIASED: tl.constexpr, ROUNDED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):
    batch = tl.program_id(2)
    qkv += batch * rows * 3 * WIDTH + tl.program_id(1) * HEAD
    cos += batch * rotation_step
    sin += batch * rotation_step
    asking = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    # A rotated head comes in halves, another in one part: products are sums over the parts.
    first, second = _parts(qkv, cos, sin, asking, rows, WIDTH, HEAD, PART, PADDED, ROTATED)
    highest = tl.full([QUERIES], float('-inf'), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mixed = tl.zeros([QUERIES, VALUES], tl.float32)
    channel = tl.arange(0, VALUES)
    seen = tl.arange(0, KEYS)
    if BIASED:  # of the next keys: what is loaded where it is needed is waited for
        bias += batch * bias_step
        added = tl.load(bias + seen, seen < rows, 0.0)
    for start in range(0, rows, KEYS):
        seen = start + tl.arange(0, KEYS)
        key, other = _parts(
            qkv + WIDTH, cos, sin, seen, rows, WIDTH, HEAD, PART, PADDED, ROTATED)
        logits = tl.dot(first, key.T, input_precision='ieee')
        if ROTATED:
            logits = tl.dot(second, other.T, logits, input_precision='ieee')
        logits *= SCALE
        if BIASED:
            logits += added.to(tl.float32)[None, :] * LOG2_E
            added = tl.load(bias + seen + KEYS, seen + KEYS < rows, 0.0)
        logits = tl.where(seen[None, :] < rows, logits, float('-inf'))
        higher = tl.maximum(highest, tl.max(logits, 1))
        weight = tl.exp2(logits - higher[:, None])
        past = tl.exp2(highest - higher)
        total = total * past + tl.sum(weight, 1)
        value = tl.load(
            qkv + 2 * WIDTH + seen[:, None] * (3 * WIDTH) + channel[None, :],
            (seen[:, None] < rows) & (channel[None, :] < HEAD), 0.0)
        mixed = tl.dot(
            weight.to(value.dtype), value, mixed * past[:, None], input_precision='ieee')
        highest = higher
    if ROUNDED:
        mixed *= tl.load(factor)
    tl.store(
        out + (batch * rows + asking[:, None]) * WIDTH + tl.program_id(1) * HEAD
        + channel[None, :],
        (mixed / total[:, None]).to(out.dtype.element_ty),
        (asking[:, None] < rows) & (channel[None, :] < HEAD))


@triton.jit
def _parts(
    x, cos, sin, row, rows, WIDTH: tl.constexpr, HEAD: tl.constexpr, PART: tl.constexpr,
    PADDED: tl.constexpr, ROTATED: tl.constexpr,
):
    """The rows of one head, [R, PADDED]: both rotated halves, or twice the whole of it."""
    channel = tl.arange(0, PADDED)
    inside = (row[:, None] < rows) & (channel[None, :] < PART)
    place = x + row[:, None] * (3 * WIDTH) + channel[None, :]
    first = tl.load(place, inside, 0.0)
    second = first
    if ROTATED:
        second = tl.load(place + PART, inside, 0.0)
        turn = row[:, None] * HEAD + channel[None, :]
        c = tl.load(cos + turn, inside, 0.0).to(tl.float32)
        s = tl.load(sin + turn, inside, 0.0).to(tl.float32)
        a, b = first.to(tl.float32), second.to(tl.float32)
        first, second = (a * c - b * s).to(first.dtype), (b * c + a * s).to(second.dtype)
    return first, second


def gate_rows(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """silu(gate) * up in 8 bits and the scale of each row, [..., 2 M] -> [..., M], [..., 1].

    As `float8.quantise_rows` does it: the largest magnitude of a row becomes the largest float.
    """
    hidden = gate_up.shape[-1] // 2
    out = gate_up.new_empty(*gate_up.shape[:-1], hidden, dtype=torch.float8_e4m3fn)
    scale = gate_up.new_empty(*gate_up.shape[:-1], 1, dtype=torch.float32)
    _gate[(scale.numel(),)](
        gate_up, out, scale, HIDDEN=hidden, PADDED=triton.next_power_of_2(hidden),
        LARGEST=_LARGEST, num_warps=16)
    return out, scale


@triton.jit
def _gate(
    gate_up, out, scale, HIDDEN: tl.constexpr, PADDED: tl.constexpr, LARGEST: tl.constexpr
):
    row, channel = tl.program_id(0), tl.arange(0, PADDED)
    gate_up += row * 2 * HIDDEN
    gate = tl.load(gate_up + channel, channel < HIDDEN, 0.0).to(tl.float32)
    up = tl.load(gate_up + HIDDEN + channel, channel < HIDDEN, 0.0).to(tl.float32)
    mixed = gate * tl.sigmoid(gate) * up
    unit = tl.maximum(tl.max(tl.abs(mixed), 0), 1e-12) / LARGEST
    tl.store(out + row * HIDDEN + channel, (mixed / unit).to(out.dtype.element_ty),
             channel < HIDDEN)
    tl.store(scale + row, unit)
