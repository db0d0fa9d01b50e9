"""What the robot delivers, checked and turned into tensors: pictures, state and prompt."""
