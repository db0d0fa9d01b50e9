"""The longer commands of `vla`, one per file."""
