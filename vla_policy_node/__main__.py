"""`python -m vla_policy_node` is `vla`, for launchers like torchrun that want a module."""

from vla_policy_node.cli import main

main()
