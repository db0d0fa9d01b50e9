"""The control loop without ROS: parameters, inputs, and the inference thread."""
