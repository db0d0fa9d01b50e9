"""Thin ROS nodes: they translate messages and own threads; what to do is decided elsewhere."""
