"""Closed-loop measurements of a policy in the simulated world, without ROS."""
