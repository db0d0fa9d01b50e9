"""Reads message contents from their bytes: bounds-checked, and without ROS."""
