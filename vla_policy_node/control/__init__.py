"""Control without torch or ROS: which observation may be used, which action is due, what is sent.

`pairing` and `freeze` decide which observation may be used, `executors` (with `ensemble`) which
action is due. A `mover` decides what the action means and how much of it may be sent:
`end_effector` with `action_spec`, `limits`, `motion` and `output_check`, or `joint_mover` with the
`joint_*` files. `commander` combines them into one command per control period; `hold` lists the
reasons for sending none, and `latency` keeps statistics of durations.

Pure Python and numpy: neither ROS nor torch is imported here. Time is always integer nanoseconds
on one clock that the caller supplies; nothing here reads a clock.
"""
