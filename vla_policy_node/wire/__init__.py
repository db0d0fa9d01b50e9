"""What messages hold, from their bytes: within bounds, and without ROS."""
