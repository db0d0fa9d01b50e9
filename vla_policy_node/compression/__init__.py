"""Weights of fewer bits, and products of them."""
