"""The worker thread: decode, infer, publish; one observation at a time."""

from __future__ import annotations

import logging
import math
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from vla_policy_node.control.hold import Hold, HoldError, HoldReason
from vla_policy_node.control.latency import LatencyStats
from vla_policy_node.control.pairing import Pair
from vla_policy_node.control.session import Goal, Outcome
from vla_policy_node.loop.control_loop import ControlLoop
from vla_policy_node.loop.observations import decode_pair
from vla_policy_node.loop.state_range import StateWatch
from vla_policy_node.policy.interface import ActionChunk, NonFiniteActionError
from vla_policy_node.wire.cdr import MessageHeader
from vla_policy_node.wire.streams import InputStreams

# How long the worker may sleep before it checks whether it should stop.
WAIT_S = 0.1
# How long a stop waits for an inference to end; a hung one must not block the node.
JOIN_S = 2.0


@dataclass(frozen=True, eq=False)
class Result:
    """One inference: the chunk and where it came from."""

    chunk: ActionChunk
    pair: Pair
    headers: dict[str, MessageHeader]
    goal: Goal
    sequence: int
    observation_age_ns: int  # capture stamp to start of work


class PolicyWorker:
    """Takes pairs, decodes, infers, hands the chunk to the executor, then publishes the result.

    One observation is in flight at a time and the newest wins. The chunk goes to the executor
    before anything is published: the robot must not wait for reports.

    now_ns: the node's clock. publish: called with each Result (worker thread).
    on_pair: called after each pair was processed; paces the robot in lock-step (worker thread).
    inference_timeout_s: of the steady clock; an inference that takes longer is `trouble`.
    """

    def __init__(
        self,
        loop: ControlLoop,
        streams: InputStreams,
        now_ns: Callable[[], int],
        publish: Callable[[Result], None],
        on_pair: Callable[[Pair], None] = lambda pair: None,
        latency_window: int = 200,
        logger: logging.Logger | None = None,
        inference_timeout_s: float = math.inf,
    ):
        self._loop = loop
        self._commander = loop.commander
        self._streams = streams
        self._now_ns = now_ns
        self._publish = publish
        self._on_pair = on_pair
        self._logger = logger or logging.getLogger(__name__)
        self._inference_timeout_s = inference_timeout_s
        self._busy_since_s: float | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._reported = ''  # trouble that was logged and is not over
        self._sequence = 0
        self._counts: Counter[str] = Counter()
        self.latency = LatencyStats(latency_window)
        self.tokens_kept = LatencyStats(latency_window)
        self.last: Result | None = None
        self.description = loop.policy.description
        self.state = StateWatch(self.description)

    def start(self) -> None:
        """Start, and count from zero (executor thread)."""
        self._stop.clear()
        self._sequence = 0
        self._counts.clear()
        self.latency.reset()
        self.tokens_kept.reset()
        self.last = None
        self.state.reset()
        self._thread = threading.Thread(target=self._run, name='policy_worker', daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = JOIN_S) -> bool:
        """Stop; return whether the thread has ended within the time (executor thread).

        If it has not, its inference hangs: the worker cannot be started again, and the policy
        is still in use.
        """
        self._stop.set()
        self._commander.parts.pairer.reset()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
            self._thread = None
        return True

    @property
    def is_busy(self) -> bool:
        """Whether an observation is being processed (any thread)."""
        return self._busy_since_s is not None

    def trouble(self) -> Hold | None:
        """Return why no answer can be expected, or None (any thread)."""
        thread, since_s = self._thread, self._busy_since_s
        if thread is not None and not thread.is_alive() and not self._stop.is_set():
            return Hold(HoldReason.INFERENCE_LATE)
        if since_s is not None and time.monotonic() - since_s > self._inference_timeout_s:
            return Hold(HoldReason.INFERENCE_LATE)
        return None

    def counts(self) -> dict[str, int]:
        """Return inferences, failures and odd states by name (any thread)."""
        return {**self._counts, **self.state.counts()}

    def _run(self) -> None:
        while not self._stop.is_set():
            self.work_once(WAIT_S)

    def work_once(self, timeout_s: float) -> bool:
        """Wait for a pair and process it (worker thread, or the only thread of a replay).

        Returns whether there was one.
        """
        pairer = self._commander.parts.pairer
        if not pairer.wait(timeout_s) or self._stop.is_set():
            return False
        pair = pairer.take(self._now_ns())
        if isinstance(pair, Hold):
            return False
        goal = self._commander.session.goal
        if goal is not None:
            self._follow(goal, pair)
        try:
            self._on_pair(pair)
        except Exception:  # this thread must survive: nothing else infers
            self._logger.error(traceback.format_exc())
        return True

    def _follow(self, goal: Goal, pair: Pair) -> None:
        self._busy_since_s = time.monotonic()
        try:
            self._work(goal, pair)
        except HoldError as error:
            self._report(error.hold, str(error), goal)
        except NonFiniteActionError as error:
            self._report(Hold(HoldReason.ACTION_INVALID), str(error), goal)
        except KeyboardInterrupt:  # of a replay, which has no other thread
            raise
        except BaseException:  # SystemExit too: nothing that the policy calls may end the thread
            self._report(Hold(HoldReason.INFERENCE_FAILED), traceback.format_exc(), goal)
            self._commander.end(Outcome.INFERENCE_FAILED, goal.epoch)
        finally:
            self._busy_since_s = None

    def _work(self, goal: Goal, pair: Pair) -> None:
        if not self._loop.needs_inference(pair.stamp_ns):
            return
        age_ns = self._now_ns() - pair.stamp_ns
        started = time.perf_counter()
        observation, headers = decode_pair(
            pair, goal.instruction, self._commander.parts.mover.spec.frame_id, self._streams)
        decode_ms = (time.perf_counter() - started) * 1e3
        for sentence in self.state.look(observation.proprio, goal.epoch):
            self._logger.warning(sentence)
        chunk = self._loop.infer(observation, pair.stamp_ns, goal)
        chunk = replace(chunk, stage_ms={'decode': decode_ms, **chunk.stage_ms})
        self._commander.fault(None, goal.epoch)
        self._reported = ''
        self._sequence += 1
        self._counts['inferences'] += 1
        if chunk.reused_by:
            self._counts['actions_reused'] += 1
        self.latency.add(sum(chunk.stage_ms.values()))
        self.tokens_kept.add(chunk.tokens_kept)
        self.last = Result(chunk, pair, headers, goal, self._sequence, age_ns)
        self._publish(self.last)

    def _report(self, hold: Hold, text: str, goal: Goal) -> None:
        if text != self._reported:  # a bad camera sends the same picture 30 times a second
            self._reported = text
            self._logger.error(text)
        self._counts[hold.code.name.lower()] += 1
        self._commander.fault(hold, goal.epoch)
