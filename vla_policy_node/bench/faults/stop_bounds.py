"""Bounds on each kind of stop, from the request to the first hold at the robot (s)."""

STOP_BOUNDS_S = {
    'cancel': 0.1,
    'estop': 0.1,
    'deactivate': 0.1,
    'SIGINT': 0.3,
    'SIGTERM': 0.3,
    'SIGHUP': 0.3,
    'supervisor': 0.3,
}
