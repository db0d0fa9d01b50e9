"""Additions to rclpy's lifecycle: logged exceptions, the current state, complete destruction."""

import functools
import time
import traceback
from collections.abc import Callable

from rclpy.lifecycle import LifecycleNode, State, TransitionCallbackReturn

# States that a node can be shut down from; in all others a transition is under way.
_RESTING = ('unconfigured', 'inactive', 'active')


def transition(method: Callable) -> Callable:
    """Log the full exception of a transition, and fail it.

    rclpy turns every exception into ERROR and drops the traceback. A ValueError in configure is
    for the user to fix: it fails with its sentence, and the node stays unconfigured.
    """

    @functools.wraps(method)
    def guarded(node: LifecycleNode, state: State) -> TransitionCallbackReturn:
        try:
            method(node, state)
        except Exception as error:
            if isinstance(error, ValueError) and method.__name__ == 'on_configure':
                node.get_logger().error(f'configure refused: {error}')
                return TransitionCallbackReturn.FAILURE
            node.get_logger().fatal(f'{method.__name__[3:]} failed:\n{traceback.format_exc()}')
            return TransitionCallbackReturn.ERROR
        return TransitionCallbackReturn.SUCCESS

    return guarded


def state_label(node: LifecycleNode) -> str:
    """Return the name of the current state, for instance 'deactivating' during a transition."""
    # rclpy has no public access to the current state.
    machine = node._state_machine
    return 'finalized' if machine is None else machine.current_state[1]


def shut_down(node: LifecycleNode, timeout_s: float = 5.0) -> None:
    """Finalize a node from any state, after a transition on another thread has ended.

    After the timeout (a large model that is still being loaded) it stays as it is.
    """
    deadline = time.monotonic() + timeout_s
    while state_label(node) != 'finalized' and time.monotonic() < deadline:
        if state_label(node) in _RESTING:
            node.trigger_shutdown()
        else:
            time.sleep(0.01)


def release_state_machine(node: LifecycleNode) -> None:
    """Complete the destruction of a node, which is in the graph until then.

    rclpy's `destroy_node` leaves the state machine, which holds the node, to the garbage
    collector. So does this if threads of the node may still ask for its state: reading it from a
    destroyed machine ends the process.
    """
    if state_label(node) in ('finalized', 'unconfigured'):
        machine, node._state_machine = node._state_machine, None
        if machine is not None:
            machine.destroy_when_not_in_use()
