"""A policy around another one: wrappers override what they change."""

from __future__ import annotations

from vla_policy_node.policy.interface import (
    ActionChunk,
    InferenceRequest,
    Policy,
    PolicyDescription,
)


class PolicyWrapper:
    """Passes everything on to the policy inside."""

    def __init__(self, inside: Policy):
        self.inside = inside

    @property
    def description(self) -> PolicyDescription:
        """That of the policy inside."""
        return self.inside.description

    def infer(self, request: InferenceRequest) -> ActionChunk:
        """Predict the next chunk."""
        return self.inside.infer(request)

    def check_instruction(self, instruction: str) -> None:
        """Raise the ValueError with which `infer` would refuse the instruction."""
        self.inside.check_instruction(instruction)

    def warm_up(self, instruction: str) -> None:
        """Get ready for instructions as long as this one."""
        self.inside.warm_up(instruction)

    def reset(self) -> None:
        """Begin a new episode or instruction."""
        self.inside.reset()

    def close(self) -> None:
        """Free what the policy inside holds."""
        self.inside.close()


def innermost(policy: Policy) -> Policy:
    """Return the policy inside of all wrappers."""
    while isinstance(policy, PolicyWrapper):
        policy = policy.inside
    return policy
