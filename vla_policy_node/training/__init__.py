"""Demonstrations, and the stages that turn them into a policy."""
