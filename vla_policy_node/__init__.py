"""The ROS 2 runtime for accelerated vision-language-action policies."""
