"""Checks whether a checkpoint runs here as it was trained (`vla check`). Torch, not ROS."""
