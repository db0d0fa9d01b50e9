"""What a measurement was made on."""

import platform
from pathlib import Path


def processor_name() -> str:
    """Return the model of the processor, as Linux knows it."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()
