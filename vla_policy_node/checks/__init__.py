"""Does a checkpoint run here as it was trained? Needs torch, not ROS; `vla check` shows it."""
