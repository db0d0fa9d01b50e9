"""A running node, measured and disturbed over DDS."""
