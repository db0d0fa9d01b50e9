"""Answers without the network: what a method may say instead of any policy."""

from __future__ import annotations

import numpy as np

from vla_policy_node.policy.interface import ActionChunk, InferenceRequest, PolicyDescription


class StepAnswers:
    """Never answers; subclasses do. They see nothing but requests and chunks.

    name: that of the method.
    """

    name = ''

    def answer(
        self, request: InferenceRequest, description: PolicyDescription
    ) -> np.ndarray | None:
        """Return actions [K, A] of `ActionChunk` to give instead of asking the policy, or None."""
        return None

    def record(self, chunk: ActionChunk) -> None:
        """See what was answered, `chunk.reused_by` whom."""

    def reset(self) -> None:
        """Forget past steps."""
