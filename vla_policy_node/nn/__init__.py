"""Plain networks and their sequences: no policy, no checkpoint, no acceleration method."""
