"""The option --namespace of commands that speak to a running system."""

from vla_policy_node.cli.refusal import refusal
from vla_policy_node.common.ros_names import checked_namespace


def namespace_of(text: str) -> str:
    """Return the namespace that was given, as '/r1', '' for the root; refuse what is none."""
    try:
        return checked_namespace(text)
    except ValueError as error:
        raise refusal(f'--namespace: {error}') from None
