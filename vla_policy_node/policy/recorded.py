"""Policies that record what they were asked and answered, and that answer from a recording."""

from __future__ import annotations

from collections.abc import Sequence

from vla_policy_node.policy.interface import (
    ActionChunk,
    InferenceRequest,
    Policy,
    PolicyDescription,
)
from vla_policy_node.policy.wrapper import PolicyWrapper


class RecordingPolicy(PolicyWrapper):
    """Answers as the policy inside, and keeps every request with its answer."""

    def __init__(self, inside: Policy):
        super().__init__(inside)
        self.requests: list[InferenceRequest] = []
        self.chunks: list[ActionChunk] = []

    def infer(self, request: InferenceRequest) -> ActionChunk:
        """Predict the next chunk, and keep both."""
        chunk = self.inside.infer(request)
        self.requests.append(request)
        self.chunks.append(chunk)
        return chunk


class RecordedPolicy:
    """Says recorded chunks again, one after the other, whatever it is asked.

    `reset` begins with the first one. ValueError from `infer` when there are no more.
    """

    def __init__(self, description: PolicyDescription, chunks: Sequence[ActionChunk]):
        self.description = description
        self._chunks = tuple(chunks)
        self._rest = iter(self._chunks)

    def infer(self, request: InferenceRequest) -> ActionChunk:
        """Return the next chunk of the recording."""
        for chunk in self._rest:
            return chunk
        raise ValueError(f'The recording has only {len(self._chunks)} answers.')

    def check_instruction(self, instruction: str) -> None:
        """Take any instruction: the answers were given long ago."""

    def warm_up(self, instruction: str) -> None:
        """Get ready: no answer is slow for being the first."""

    def reset(self) -> None:
        """Begin with the first answer again."""
        self._rest = iter(self._chunks)

    def close(self) -> None:
        """Free the answers."""
        self._chunks = ()
        self._rest = iter(())
