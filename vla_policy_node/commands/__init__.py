"""Implementations of the longer `vla` commands, one per file."""
