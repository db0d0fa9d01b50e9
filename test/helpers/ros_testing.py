"""Shared helpers of the tests that talk over real DDS.

A test module imports the fixture by name and asks for it once:

    from ros_testing import ros, spin_until  # noqa: F401
    pytestmark = pytest.mark.usefixtures('ros')
"""

import os
import time
from contextlib import contextmanager

import pytest
import rclpy

from vla_policy_node.system.domain import free_domain, own_domain

TIMEOUT_S = 30.0  # a busy machine is slow; nothing passes because it waited

# On this machine only: two test runs, or a robot on the same network, must not hear each other.
os.environ['ROS_DOMAIN_ID'] = str(free_domain())
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'


@contextmanager
def alone():
    """Lend a domain of its own, to this process and to those that it starts meanwhile.

    In its graph is nobody whom an earlier test left there: a process that was killed stays until
    its lease is over, and what rclpy leaves to the garbage collector until that comes.
    """
    with own_domain() as domain, pytest.MonkeyPatch.context() as patch:
        patch.setenv('ROS_DOMAIN_ID', str(domain))
        yield


@contextmanager
def context_alone():
    """The same with rclpy's default context, without the arguments of pytest."""
    rclpy.try_shutdown()  # a test whose own clean-up failed must not fail all that follow
    with alone():
        rclpy.init(args=[])
        try:
            yield rclpy.get_default_context()
        finally:
            rclpy.try_shutdown()


@pytest.fixture
def domain():
    """For tests whose contexts are made elsewhere."""
    with alone():
        yield


@pytest.fixture
def ros():
    """For tests that make nodes in the default context."""
    with context_alone() as context:
        yield context


def spin_until(executor, predicate, timeout_s=TIMEOUT_S):
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
