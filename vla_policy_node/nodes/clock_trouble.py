"""Says what is wrong with `/clock`: in the log once, in status and diagnostics while it lasts."""

import time

from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.node import Node

from vla_policy_node.control.clock_rate import ClockRate
from vla_policy_node.control.pacing import SILENCE_PERIODS
from vla_policy_node.loop.parameters import PolicyParameters

# A simulator may pause between two steps for so long without a word.
STOPPED_S = 1.0


class ClockTrouble:
    """Watches the simulated time of a node, from configure to cleanup."""

    def __init__(self, node: Node, parameters: PolicyParameters):
        self._node = node
        self._clock = node.get_clock()
        self._logger = node.get_logger()
        self._told: set[str] = set()
        bounds: tuple = (None, None, None)
        if parameters.pacing != 'observation':
            period_ns = parameters.period_ns
            timeout_ns = round(parameters.clock_timeout_s * 1e9)
            bounds = (period_ns, timeout_ns or round(SILENCE_PERIODS * period_ns),
                      max(timeout_ns, round(STOPPED_S * 1e9)))
        self._rate = ClockRate(*bounds)
        self._jumps = self._clock.create_jump_callback(
            JumpThreshold(min_forward=Duration(nanoseconds=1),
                          min_backward=Duration(nanoseconds=-1), on_clock_change=False),
            post_callback=lambda _: self._rate.arrived(
                self._clock.now().nanoseconds, time.monotonic_ns()))

    def text(self) -> str:
        """Return what is wrong now, '' for nothing (any thread)."""
        kind, text = self._rate.trouble(self._clock.now().nanoseconds, time.monotonic_ns())
        if kind and kind not in self._told:
            self._told.add(kind)
            self._logger.warning(f'{text[0].upper()}{text[1:]}.')
        return text

    def watch_graph(self) -> None:
        """Warn of several nodes that publish it (executor thread)."""
        if self._node.count_publishers('/clock') > 1:
            self._logger.warning(
                'Several nodes publish /clock, and the time is whatever came last; give each '
                'simulation a ROS_DOMAIN_ID of its own.', throttle_duration_sec=30.0)

    def destroy(self) -> None:
        """Stop watching."""
        self._jumps.unregister()
