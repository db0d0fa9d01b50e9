"""What is no message, or no time, does not end a node. Over real DDS."""

# ruff: noqa: F401, F811 - fixtures are imported by name

import pytest
from builtin_interfaces.msg import Time
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from ros_testing import ros, spin_until
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String
from std_srvs.srv import Trigger

from vla_policy_node.nodes import qos
from vla_policy_node.nodes.sim_time import guard_clock
from vla_policy_node.nodes.spinning import Spinner

pytestmark = pytest.mark.usefixtures('ros')
CDR = b'\x00\x01\x00\x00'
NO_MESSAGE = [b'', b'\x00', CDR, CDR + b'\xff\xff\xff\x7f', CDR + b'\x05\x00\x00\x00ab']


def send(executor, publisher, message):
    """Within a process a sample is there when `publish` returns; the next would replace it."""
    publisher.publish(message)
    for _ in range(3):
        executor.spin_once(timeout_sec=0.01)


@pytest.fixture
def node():
    made = Node('listener', parameter_overrides=[Parameter('use_sim_time', value=True)])
    guard_clock(made)
    yield made
    made.destroy_node()


@pytest.fixture
def executor(node):
    made = SingleThreadedExecutor()
    made.add_node(node)
    yield made
    made.shutdown()


def test_bytes_that_are_no_message_are_dropped_and_the_next_message_arrives(node, executor):
    heard = []
    node.create_subscription(String, 'words', heard.append, qos.event_output())
    publisher = node.create_publisher(String, 'words', qos.event_output())
    assert spin_until(executor, publisher.get_subscription_count)
    for raw in NO_MESSAGE:
        send(executor, publisher, raw)
    publisher.publish(String(data='a word'))
    assert spin_until(executor, lambda: heard and heard[-1].data == 'a word')


def test_bytes_that_are_no_clock_leave_the_time_as_it_is(node, executor):
    publisher = node.create_publisher(Clock, '/clock', qos.clock_output())
    assert spin_until(executor, publisher.get_subscription_count)

    def tell(clock):
        publisher.publish(clock)
        return spin_until(executor, lambda: node.get_clock().now().nanoseconds == 7_000_000_000,
                          timeout_s=0.2)

    while not tell(Clock(clock=Time(sec=7))):
        pass
    for raw in NO_MESSAGE:
        send(executor, publisher, raw)
    for clock in (Time(sec=-1), Time(sec=-2**31, nanosec=5), Time(sec=9, nanosec=2**32 - 1)):
        send(executor, publisher, Clock(clock=clock))
    publisher.publish(Clock(clock=Time(sec=8)))
    seen = set()
    assert spin_until(executor, lambda: seen.add(node.get_clock().now().nanoseconds)
                      or 8_000_000_000 in seen)
    assert seen <= {7_000_000_000, 8_000_000_000}


@pytest.mark.parametrize('error', [RuntimeError('no'), SystemExit(3), MemoryError()])
def test_a_callback_that_raises_does_not_end_the_thread_that_serves_stops(ros, error):
    served, client_node = Node('served'), Node('client')

    def explode(request, response):
        raise error

    def answer(request, response):
        response.success = True
        return response

    served.create_service(Trigger, 'explode', explode)
    served.create_service(Trigger, 'stop', answer)
    spinner = Spinner(served, 'served')
    executor = SingleThreadedExecutor()
    executor.add_node(client_node)
    try:
        for name in ('explode', 'stop'):
            client = client_node.create_client(Trigger, name)
            assert client.wait_for_service(20.0)
            future = client.call_async(Trigger.Request())
        assert spin_until(executor, future.done, timeout_s=20.0)
        assert future.result().success
    finally:
        spinner.stop()
        executor.shutdown()
        served.destroy_node()
        client_node.destroy_node()
