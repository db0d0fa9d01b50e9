"""Describes the machine that a measurement was made on."""

import platform
import sys
from pathlib import Path


def processor_name() -> str:
    """Return the model of the processor, as Linux knows it."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()


def memory_bytes() -> int:
    """Return how much memory the machine has, swap included; if Linux does not tell, no limit."""
    try:
        lines = Path('/proc/meminfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        lines = []
    sizes = {name: int(rest.split()[0]) << 10 for name, _, rest in (
        line.partition(':') for line in lines) if name in ('MemTotal', 'SwapTotal')}
    return sum(sizes.values()) or sys.maxsize
