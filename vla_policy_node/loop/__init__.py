"""The control loop without ROS: parameters, inputs, the thread that infers."""
