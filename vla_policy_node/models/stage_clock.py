"""Measures how long each stage of an inference takes."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


class StageClock:
    """Time between marks, in ms by the name of the stage that ended there.

    Waits for the device at each mark, or the times would be those of queueing the work.
    """

    def __init__(
        self, device: torch.device, read_s: Callable[[], float] = time.perf_counter
    ):
        """read_s: what tells the time, in s."""
        self.stage_ms: dict[str, float] = {}
        self._device = device
        self._read_s = read_s
        self._last_s = read_s()

    def mark(self, stage: str) -> None:
        """End `stage`; the next one begins."""
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        now_s = self._read_s()
        self.stage_ms[stage] = (now_s - self._last_s) * 1e3
        self._last_s = now_s
