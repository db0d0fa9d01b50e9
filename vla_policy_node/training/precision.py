"""Precision of the arithmetic in training."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch


def autocast(device: torch.device) -> torch.autocast:
    """Multiply matrices in the best precision of the device; weights stay float32."""
    precision = best_precision(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16)


@cache  # every step asks, and the answer is in a file
def best_precision(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the processor multiplies in it, else float32.

    Without such units bfloat16 is emulated, and several times slower than float32.
    """
    if device.type == 'cuda':
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        flags = _cpu_flags()
        native = 'avx512_bf16' in flags or 'amx_bf16' in flags
    return torch.bfloat16 if native else torch.float32


def _cpu_flags() -> str:
    try:
        return Path('/proc/cpuinfo').read_text(encoding='utf-8')
    except OSError:
        return ''
