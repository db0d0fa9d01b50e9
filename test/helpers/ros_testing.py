"""Shared helpers of the tests that talk over real DDS.

A test module imports the fixture by name and asks for it once:

    from ros_testing import ros, spin_until  # noqa: F401
    pytestmark = pytest.mark.usefixtures('ros')
"""

import os
import time

import pytest
import rclpy

from vla_policy_node.system.domain import free_domain, own_domain

# One domain per process, on this machine only: two test runs, or a robot on the same network,
# must not hear each other.
os.environ['ROS_DOMAIN_ID'] = str(free_domain())
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'


@pytest.fixture
def ros():
    """Initialise rclpy's default context for one test, without the arguments of pytest."""
    rclpy.init(args=[])
    yield rclpy.get_default_context()
    rclpy.try_shutdown()


@pytest.fixture
def ros_alone():
    """The same in a domain of its own: in its graph is nobody that an earlier test left there.

    A process that was killed stays in the graph for as long as its lease says.
    """
    with own_domain() as domain:
        rclpy.init(args=[], domain_id=domain)
        yield rclpy.get_default_context()
        rclpy.try_shutdown()


def spin_until(executor, predicate, timeout_s=5.0):
    """Serve callbacks until `predicate()` is true; return whether it became true in time.

    The predicate is looked at after every callback, and at least every 20 ms, as other threads
    may change what it reads.
    """
    deadline = time.monotonic() + timeout_s
    while not predicate():
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            return False
        executor.spin_once(timeout_sec=min(remaining_s, 0.02))
    return True
