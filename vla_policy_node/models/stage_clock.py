"""Measures how long each stage of an inference takes."""

from __future__ import annotations

import time

import torch


class StageClock:
    """Wall time between marks, in ms by the name of the stage that ended there.

    Waits for the device at each mark, or the times would be those of queueing the work.
    """

    def __init__(self, device: torch.device):
        self.stage_ms: dict[str, float] = {}
        self._device = device
        self._last_s = time.perf_counter()

    def mark(self, stage: str) -> None:
        """End `stage`; the next one begins."""
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        now_s = time.perf_counter()
        self.stage_ms[stage] = (now_s - self._last_s) * 1e3
        self._last_s = now_s
