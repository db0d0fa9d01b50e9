"""Warm-up: what a policy does before anything depends on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_policy_node.policy.interface import (
    ActionChunk,
    InferenceRequest,
    Observation,
    Policy,
    PolicyDescription,
)

_INSTRUCTION = 'warm up'
_SIDE_PX = 256


def warm_up(
    policy: Policy, inferences: int = 1, instructions: Sequence[str] = ()
) -> ActionChunk | None:
    """Get ready, answer grey pictures, forget them; return the last answer, None for none.

    instructions: get ready for some as long as these. ValueError for one that cannot be used.
    """
    for text in instructions:
        policy.warm_up(text)
    request = InferenceRequest(grey_observation(policy.description, *instructions[:1]))
    chunk = None
    for _ in range(inferences):
        chunk = policy.infer(request)
    policy.reset()
    return chunk


def grey_observation(description: PolicyDescription, instruction: str = '') -> Observation:
    """Return what a robot at zero sees on a grey day, told something that the policy knows."""
    grey = np.full((_SIDE_PX, _SIDE_PX, 3), 128, np.uint8)
    return Observation(
        dict.fromkeys(description.spec.cameras, grey), np.zeros(len(description.spec.state)),
        instruction or next(iter(description.instructions), _INSTRUCTION))
