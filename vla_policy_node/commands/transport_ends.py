"""The two processes of `transport.measure`: `send` plays a camera driver, `receive` our node.

    python -m vla_policy_node.commands.transport_ends send 4.0
    python -m vla_policy_node.commands.transport_ends receive
"""

from __future__ import annotations

import os
import sys
import threading
import time

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from vla_policy_node.commands.transport import HEIGHT, RATE_HZ, WIDTH
from vla_policy_node.nodes import qos
from vla_policy_node.nodes.messages import to_time

TOPICS = ('vla_doctor/first/image_raw', 'vla_doctor/second/image_raw')
MATCH_TIMEOUT_S = 10.0
# What the last pictures may take.
DRAIN_S = 0.5


def send(duration_s: float) -> None:
    """Publish pairs of pictures, stamped 1, 2, ... ns; print the number of each pair."""
    node = Node('vla_doctor_sender')
    publishers = [node.create_publisher(Image, topic, qos_profile_sensor_data) for topic in TOPICS]
    deadline = time.monotonic() + MATCH_TIMEOUT_S
    while not all(publisher.get_subscription_count() for publisher in publishers):
        if time.monotonic() > deadline:
            sys.exit('Two processes on this machine do not find each other.')
        time.sleep(0.02)
    picture = Image(width=WIDTH, height=HEIGHT, encoding='rgb8', step=3 * WIDTH)
    picture.data.frombytes(os.urandom(3 * WIDTH * HEIGHT))
    # A reader that is known here may not know the publisher yet.
    begin = time.monotonic() + 0.5
    for number in range(1, round(duration_s * RATE_HZ) + 1):
        time.sleep(max(0.0, begin + number / RATE_HZ - time.monotonic()))
        picture.header.stamp = to_time(number)
        for publisher in publishers:
            publisher.publish(picture)
        print(number, flush=True)
    time.sleep(DRAIN_S)  # what is gone with its publisher does not arrive


def receive() -> None:
    """Read both topics as a policy node does, until stdin ends; print how many pairs arrived."""
    node = Node('vla_doctor_receiver')
    stamps: tuple[set[bytes], ...] = (set(), set())
    for topic, seen in zip(TOPICS, stamps, strict=True):
        # The stamp begins after the four bytes of the encapsulation.
        node.create_subscription(
            Image, topic, lambda raw, seen=seen: seen.add(raw[4:12]), qos.camera_input(), raw=True)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    while not ended.is_set():
        executor.spin_once(timeout_sec=0.1)
    print(len(stamps[0] & stamps[1]), flush=True)


if __name__ == '__main__':
    rclpy.init(args=[])
    if sys.argv[1] == 'send':
        send(float(sys.argv[2]))
    else:
        receive()
    rclpy.try_shutdown()
