"""`python -m vla_policy_node.cli`."""

from vla_policy_node.cli import main

main()
