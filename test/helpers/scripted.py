"""A policy that says what a test tells it, whole in all that the interface asks for."""

from vla_policy_node.policy.interface import PolicyDescription


class ScriptedPolicy:
    """Remembers what it was asked; subclasses say what it answers."""

    def __init__(self):
        self.description = PolicyDescription(architecture='scripted', chunk_length=8)
        self.requests, self.resets = [], 0

    @property
    def observations(self):
        return [request.observation for request in self.requests]

    def infer(self, request):
        self.requests.append(request)
        return self.answer(request)

    def check_instruction(self, instruction):
        """Know all of them."""

    def warm_up(self, instruction):
        """Be ready anyway."""

    def reset(self):
        self.resets += 1

    def close(self):
        """Hold nothing."""
