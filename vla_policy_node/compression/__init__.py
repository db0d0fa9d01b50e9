"""Smaller weights: of fewer bits, with products of them, or of fewer layers and channels."""
