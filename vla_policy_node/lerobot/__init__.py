"""The LeRobot dataset v3, read and written without LeRobot."""
