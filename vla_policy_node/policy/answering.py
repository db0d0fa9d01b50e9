"""Wrapper for methods that answer some steps themselves instead of running the policy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from vla_policy_node.acceleration.answers import StepAnswers
from vla_policy_node.policy.interface import (
    ActionChunk,
    InferenceRequest,
    NonFiniteActionError,
    Policy,
)
from vla_policy_node.policy.wrapper import PolicyWrapper


class AnsweringPolicy(PolicyWrapper):
    """Asks each of `answers` first, and runs the inner policy only if none of them answers.

    All of them see every step; the first answer counts. The stage 'reuse' is their time.

    read_s: what that is measured with.
    """

    read_s: Callable[[], float] = staticmethod(time.perf_counter)

    def __init__(self, inside: Policy, answers: Sequence[StepAnswers]):
        super().__init__(inside)
        self._answers = tuple(answers)
        self._last: ActionChunk | None = None
        self._cameras: set[str] | None = None  # that had pictures last
        self._unseen: list[np.ndarray] = []  # executed while the policy inside was not asked

    def infer(self, request: InferenceRequest) -> ActionChunk:
        """Return the first answer, or the chunk of the policy inside."""
        started_s = self.read_s()
        cameras = {*request.observation.images}
        if self._cameras not in (None, cameras):  # what was kept was of other pictures
            for answers in self._answers:
                answers.reset()
        self._cameras = cameras
        given = [(answers.answer(request, self.description), answers.name)
                 for answers in self._answers]
        actions, name = next(((a, name) for a, name in given if a is not None), (None, ''))
        reuse_ms = (self.read_s() - started_s) * 1e3
        self._unseen.append(request.execution.executed)
        if actions is None or self._last is None:
            chunk = self._ask(request, reuse_ms)
        else:
            chunk = _again(self._last, actions, name, reuse_ms)
        for answers in self._answers:
            answers.record(chunk)
        self._last = chunk
        return chunk

    def reset(self) -> None:
        """Begin a new episode or instruction."""
        super().reset()
        for answers in self._answers:
            answers.reset()
        self._last = None
        self._unseen.clear()

    def _ask(self, request: InferenceRequest, reuse_ms: float) -> ActionChunk:
        executed = [actions for actions in self._unseen if len(actions)]
        if len(executed) > 1:
            execution = replace(request.execution, executed=np.concatenate(executed))
            request = replace(request, execution=execution)
        chunk = self.inside.infer(request)
        self._unseen.clear()
        reuse_ms += chunk.stage_ms.get('reuse', 0.0)
        return replace(chunk, stage_ms={**chunk.stage_ms, 'reuse': reuse_ms})


def _again(last: ActionChunk, actions: np.ndarray, name: str, reuse_ms: float) -> ActionChunk:
    """A chunk of these actions by a method, for which no visual token was used."""
    if not np.isfinite(actions).all():
        raise NonFiniteActionError(f'{name} answered with actions that are not finite.')
    normalised = last.normalised if np.array_equal(actions, last.actions) else actions[:0]
    selections = tuple(
        replace(selection, kept=np.zeros_like(selection.kept), scores=selection.scores[:0])
        for selection in last.selections)
    return ActionChunk(
        actions, selections, {'reuse': reuse_ms}, last.method, 0, last.tokens_total,
        layers_total=last.layers_total, reused_by=name, normalised=normalised)
