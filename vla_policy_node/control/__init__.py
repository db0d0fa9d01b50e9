"""Torch- and ROS-free control: which observation may be used, which action is due, how much of it.

`pairing` and `freeze` decide which observation may be used, `executors` (with `ensemble`) which
action is due. A `mover` says what it means and how much of it may be sent: `end_effector` with
`action_spec`, `limits`, `motion` and `output_check`, `joint_mover` with the files named after
joints. `hold` says why nothing is sent, `latency`
how long things took.

Pure Python and numpy: neither ROS nor torch is imported here. Time is always integer nanoseconds
on one clock that the caller supplies; nothing here reads a clock.
"""
