"""Runs the plain model beside the accelerated one to measure what methods save and change."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import traceback
from dataclasses import dataclass

import numpy as np

from vla_policy_node.control.action_spec import ActionSpec
from vla_policy_node.control.latency import LatencyStats
from vla_policy_node.policy.interface import ActionChunk, InferenceRequest, Policy
from vla_policy_node.policy.wrapper import PolicyWrapper

# Niceness of the thread: it gets the processor time that the robot's work leaves.
NICENESS = 10
JOIN_S = 2.0


@dataclass(frozen=True)
class ShadowSummary:
    """What the comparisons of the last window say; medians, NaN before the first.

    saved_ms: plain minus accelerated. translation_mm, rotation_mrad: largest change of a
    displacement over the elements of a chunk. gripper_differs: chunks of all compared in which an
    element says open instead of closed. skipped: due while the one before was still running.
    """

    compared: int
    skipped: int
    failed: int
    saved_ms: float
    plain_ms: float
    translation_mm: float
    rotation_mrad: float
    worst_translation_mm: float
    worst_rotation_mrad: float
    gripper_differs: int

    @property
    def text(self) -> str:
        """One sentence for diagnostics and overlay."""
        if not self.compared:
            return 'Nothing was compared yet.'
        return (f'pruning saved {self.saved_ms:.0f} ms, changed the action by '
                f'{self.translation_mm:.1f} mm, {self.rotation_mrad:.1f} mrad')

    def figures(self) -> list[tuple[str, str]]:
        """Return names and values for diagnostics."""
        return [
            ('compared', str(self.compared)), ('skipped', str(self.skipped)),
            ('failed', str(self.failed)),
            ('saved p50 ms', f'{self.saved_ms:.1f}'), ('plain p50 ms', f'{self.plain_ms:.1f}'),
            ('translation change p50 mm', f'{self.translation_mm:.3f}'),
            ('translation change max mm', f'{self.worst_translation_mm:.3f}'),
            ('rotation change p50 mrad', f'{self.rotation_mrad:.3f}'),
            ('rotation change max mrad', f'{self.worst_rotation_mrad:.3f}'),
            ('gripper differs', str(self.gripper_differs)),
        ]


class ShadowedPolicy(PolicyWrapper):
    """Answers as the policy inside, and runs another one beside it on every n-th observation.

    The other one, `plain`, is the same without methods; it runs in a thread of low priority. It
    never delays a command: `infer` does not wait for it, and comparisons that are due while the
    thread is busy are skipped and counted. It still competes for the processor, so `every` should
    be large; the plain time is that of a model running beside another one.
    """

    def __init__(self, inside: Policy, plain: Policy, spec: ActionSpec, every: int, window: int,
                 logger: logging.Logger | None = None):
        super().__init__(inside)
        self._plain = plain
        self._spec = spec
        self._every = every
        self._logger = logger or logging.getLogger(__name__)
        self._inbox: queue.Queue = queue.Queue(1)
        self._idle = threading.Event()
        self._thread: threading.Thread | None = None
        self._stats = {name: LatencyStats(window) for name in (
            'saved', 'plain', 'translation', 'rotation')}
        self._offered = self._compared = self._skipped = self._failed = 0
        self._gripper_differs = 0

    def start(self) -> None:
        """Begin, and count from zero (executor thread)."""
        for stats in self._stats.values():
            stats.reset()
        self._offered = self._compared = self._skipped = self._failed = 0
        self._gripper_differs = 0
        self._idle.set()
        # One of its own for each thread: one that hung must not take what is for the next.
        self._inbox = queue.Queue(1)
        self._thread = threading.Thread(
            target=self._run, args=(self._inbox,), name='shadow', daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop; waits a little for an inference to end (executor thread)."""
        if self._thread is not None:
            with contextlib.suppress(queue.Full):
                self._inbox.put(None, timeout=JOIN_S)
                self._thread.join(JOIN_S)
            self._thread = None

    def infer(self, request: InferenceRequest) -> ActionChunk:
        """Predict the next chunk; compare it if it is due and no comparison is running."""
        chunk = self.inside.infer(request)
        self._offer(request, chunk)
        return chunk

    def close(self) -> None:
        """Stop, and free both."""
        self.stop()
        self._plain.close()
        super().close()

    def _offer(self, request: InferenceRequest, chunk: ActionChunk) -> None:
        if self._thread is None:
            return
        self._offered += 1
        if (self._offered - 1) % self._every:
            return
        if not self._idle.is_set():
            self._skipped += 1
            return
        self._idle.clear()
        self._inbox.put((request, chunk))

    def summary(self) -> ShadowSummary:
        """Return what was found (any thread)."""
        found = {name: stats.summary() for name, stats in self._stats.items()}
        return ShadowSummary(
            self._compared, self._skipped, self._failed, found['saved'].p50_ms,
            found['plain'].p50_ms, found['translation'].p50_ms, found['rotation'].p50_ms,
            found['translation'].max_ms, found['rotation'].max_ms, self._gripper_differs)

    def _run(self, inbox: queue.Queue) -> None:
        if hasattr(os, 'setpriority'):
            # Linux: of this thread, and of those that torch starts for it.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(),
                           os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
        while (item := inbox.get()) is not None:
            try:
                self._compare(*item)
            except Exception:  # a failed comparison must not affect anything else
                self._failed += 1
                self._logger.error(traceback.format_exc())
            self._idle.set()

    def _compare(self, request: InferenceRequest, chunk: ActionChunk) -> None:
        plain = self._plain.infer(request)
        ours, theirs = (
            [self._spec.to_command(action) for action in actions]
            for actions in (chunk.actions, plain.actions))

        def largest(name: str) -> float:
            return max(float(np.linalg.norm(getattr(a, name) - getattr(b, name)))
                       for a, b in zip(ours, theirs, strict=True))

        plain_ms = sum(plain.stage_ms.values())
        # The decision whether to answer anew is left out: the plain one has no such stage.
        ms = sum(value for stage, value in chunk.stage_ms.items() if stage in plain.stage_ms)
        self._stats['plain'].add(plain_ms)
        self._stats['saved'].add(plain_ms - ms)
        self._stats['translation'].add(largest('translation_m') * 1e3)
        self._stats['rotation'].add(largest('rotation_rad') * 1e3)
        self._gripper_differs += any(
            (a.gripper > 0.5) != (b.gripper > 0.5) for a, b in zip(ours, theirs, strict=True))
        self._compared += 1
