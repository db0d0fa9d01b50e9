"""OpenVLA-OFT in any size: networks, preprocessing and checkpoints. Needs torch, not ROS."""
