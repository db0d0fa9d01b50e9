"""Replay: recorded bags through the node's own classes, and a comparison of two policies."""
