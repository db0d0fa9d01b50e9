"""Recorded bags through the node's own classes: what a policy says, what a method changed."""
