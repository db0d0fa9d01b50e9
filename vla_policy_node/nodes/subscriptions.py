"""The policy node's subscriptions: every message is filed by its stamp, or refused and counted."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from functools import partial

from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.publisher import Publisher
from std_msgs.msg import Header

from vla_policy_node.contract.robot import CLOCK
from vla_policy_node.loop.inputs import RefusedError, SensorInputs
from vla_policy_node.nodes import messages, qos
from vla_policy_node.nodes.message_classes import input_class
from vla_policy_node.wire.cdr import MessageError
from vla_policy_node.wire.streams import InputStreams, source_of

# In `filed`, besides the names of streams: the clock has reached the stamp.
CLOCK_FILED = CLOCK


class Subscriptions:
    """Those of the streams that are needed, from configure to cleanup (executor thread).

    counts: of what was refused, by name. filed: in lock-step, where to say what was filed, for
    whoever must not run ahead of this node: `player_node`; else None.
    """

    def __init__(
        self, node: Node, streams: InputStreams, inputs: SensorInputs, counts: Counter[str],
        filed: Publisher | None,
    ):
        self._node = node
        self._streams = streams
        self._inputs = inputs
        self._counts = counts
        self._filed = filed
        self._clock_watch = None
        if filed is not None:
            self._clock_watch = node.get_clock().create_jump_callback(
                JumpThreshold(min_forward=Duration(nanoseconds=1), min_backward=None,
                              on_clock_change=False),
                post_callback=lambda _: self._tell(
                    CLOCK_FILED, node.get_clock().now().nanoseconds))
        node.get_logger().info(f'Inputs that are needed: {", ".join(streams.topics)}.')
        self._subscriptions = {
            stream: node.create_subscription(
                input_class(kind), topic, partial(self.file, stream),
                qos.input_of(streams, stream), event_callbacks=SubscriptionEventCallbacks(
                    incompatible_qos=partial(self._on_incompatible_qos, topic)), raw=True)
            for stream, (kind, topic) in streams.topics.items()}

    def destroy(self) -> None:
        """Stop listening."""
        for subscription in self._subscriptions.values():
            self._node.destroy_subscription(subscription)
        if self._clock_watch is not None:
            self._clock_watch.unregister()

    @property
    def unshared_topics(self) -> list[str]:
        """Topics that one publisher should have; transforms have one for each part of the tree."""
        return [subscription.topic_name for stream, subscription in self._subscriptions.items()
                if source_of(stream) not in self._streams.transforms]

    def file(self, stream: str, raw: bytes) -> None:
        """File the bytes by stamp, if they are good."""
        try:
            self._inputs.file(stream, raw)
        except RefusedError as error:
            self._count_and_warn(f'{stream}.{error.why}', str(error))
        if self._filed is not None:
            with suppress(MessageError):
                self._tell(stream, self._streams.stamp_of(stream, raw))

    def _tell(self, what: str, stamp_ns: int) -> None:
        if self._filed is not None and self._filed.get_subscription_count():
            self._filed.publish(Header(stamp=messages.to_time(stamp_ns), frame_id=what))

    def _on_incompatible_qos(self, topic: str, event) -> None:
        self._count_and_warn(
            f'{topic}.incompatible_qos',
            f"A publisher on '{topic}' offers quality of service that this node cannot use.")

    def _count_and_warn(self, name: str, text: str) -> None:
        if not self._counts[name]:
            self._node.get_logger().warning(text)
        self._counts[name] += 1
