"""Thin ROS nodes: they translate messages and own threads; decisions are made elsewhere."""
