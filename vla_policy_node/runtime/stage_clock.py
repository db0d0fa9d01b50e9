"""Measures how long each stage of an inference takes."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


class StageClock:
    """Time between marks, by the name of the stage that ended there.

    On a GPU the marks are events in its queue, which cost it nothing: stages follow each other as
    they do without a clock.
    """

    def __init__(
        self, device: torch.device, read_s: Callable[[], float] = time.perf_counter
    ):
        """read_s: what tells the time on a CPU, in s."""
        self._device = device
        self._read_s = read_s
        self._stages: list[str] = []
        self._marks = [self._now()]

    def mark(self, stage: str) -> None:
        """End `stage`; the next one begins."""
        self._stages.append(stage)
        self._marks.append(self._now())

    @property
    def stage_ms(self) -> dict[str, float]:
        """Duration of each stage so far; waits until the GPU has come to the last mark."""
        if self._device.type == 'cuda':
            self._marks[-1].synchronize()
        times = zip(self._stages, self._marks, self._marks[1:], strict=False)
        return {stage: self._between_ms(start, end) for stage, start, end in times}

    def _now(self) -> float | torch.cuda.Event:
        if self._device.type != 'cuda':
            return self._read_s()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _between_ms(self, start, end) -> float:
        return start.elapsed_time(end) if self._device.type == 'cuda' else (end - start) * 1e3
