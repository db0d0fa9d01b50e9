"""Measures the device's peak rates of matrix products and memory reads."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vla_policy_node.compression.float8 import quantise_rows

_REPETITIONS = 7
_SIDE = {'cpu': 1024, 'cuda': 8192}
_BYTES = {'cpu': 1 << 28, 'cuda': 1 << 32}


@dataclass(frozen=True)
class Rates:
    """FLOP/s of large matrix products by dtype, and byte/s of memory."""

    flop_s: dict[str, float]
    byte_s: float

    def floor_ms(self, flops: float, stored_bytes: float, dtype: str) -> float:
        """Return the time that no implementation can beat: `flops`, or reading the weights once.

        dtype: of the arithmetic, see `runtime.loading.DTYPES`; int8 and int4 compute in
        bfloat16, and float8 too where this device has no products of it.
        """
        rate = self.flop_s.get(dtype, self.flop_s['bfloat16'])
        return 1e3 * max(flops / rate, stored_bytes / self.byte_s)


def measure_rates(device: str, read_s: Callable[[], float] = time.perf_counter) -> Rates:
    """Measure both on the device, with as many threads as torch uses now; read_s: the clock."""
    where = torch.device(device)
    dtypes = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
    rates = {name: _matrix_rate(where, dtype, read_s) for name, dtype in dtypes.items()}
    if where.type == 'cuda' and torch.cuda.get_device_capability(where) >= (8, 9):
        rates['float8'] = _float8_rate(where, read_s)
    return Rates(rates, _byte_rate(where, read_s))


def _matrix_rate(device: torch.device, dtype: torch.dtype, read_s: Callable[[], float]) -> float:
    side = _SIDE[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / _best_s(lambda: a @ b, device, read_s)


def _float8_rate(device: torch.device, read_s: Callable[[], float]) -> float:
    side = _SIDE[device.type]
    (a, scale_a), (b, scale_b) = (
        quantise_rows(torch.randn(side, side, device=device)) for _ in range(2))
    return 2 * side**3 / _best_s(
        lambda: torch._scaled_mm(
            a, b.T, scale_a=scale_a, scale_b=scale_b.T, out_dtype=torch.bfloat16,
            use_fast_accum=True),
        device, read_s)


def _byte_rate(device: torch.device, read_s: Callable[[], float]) -> float:
    source = torch.zeros(_BYTES[device.type] // 4, device=device)
    return source.nbytes / _best_s(source.sum, device, read_s)


def _best_s(
    function: Callable[[], object], device: torch.device, read_s: Callable[[], float]
) -> float:
    times_s = []
    for _ in range(_REPETITIONS):
        started_s = read_s()
        function()
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        times_s.append(read_s() - started_s)
    return min(times_s)
