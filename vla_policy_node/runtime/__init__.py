"""Weights into a network that runs: loaded, fused, quantised, compiled or captured."""
