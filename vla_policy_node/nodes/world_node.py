"""The world node: a LIBERO task on MuJoCo that behaves like a robot with two cameras.

One thread, the world thread, owns the simulation: it steps, renders and publishes, because a
rendering context belongs to the thread that made it. ROS callbacks only fill the
inbox. In real time a step comes every 50 ms, with the newest command or none; in lock-step the
world waits for the command that belongs to its last observation, so that an episode does not
depend on speed.
"""

import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Header

from vla_msgs.msg import EndEffectorCommand, WorldStatus
from vla_msgs.srv import ResetWorld
from vla_policy_node.nodes import qos
from vla_policy_node.nodes import world_messages as messages
from vla_policy_node.nodes.ending import leave
from vla_policy_node.nodes.image_messages import to_image_message
from vla_policy_node.nodes.messages import to_ns, to_time
from vla_policy_node.nodes.parameters import ParameterError, ParameterStore, parameter
from vla_policy_node.nodes.running import run
from vla_policy_node.nodes.world_clock import PacedClock, SteppedClock, SystemClock
from vla_policy_node.nodes.world_episodes import Episode, Episodes
from vla_policy_node.nodes.world_inbox import Inbox
from vla_policy_node.world.actions import GRIPPER_OPEN
from vla_policy_node.world.layouts import LAYOUTS
from vla_policy_node.world.libero_setup import SUITES
from vla_policy_node.world.libero_world import CAMERAS, LiberoWorld

FRAME_ID = 'world'
PERIOD_NS = 1_000_000_000 // LiberoWorld.CONTROL_HZ
CLOCK_PERIOD_S = 0.004
# In real time the command for a step may be a little late: two 20 Hz timers that fire together
# would otherwise give one step two commands and the next one none.
PATIENCE_S = 0.01
# A reset makes everything stamped before it too old to use.
RESET_JUMP_NS = 1_000_000_000
# Readers must learn of the leap before they see a later stamp.
JUMP_PAUSE_S = 0.05


@dataclass(frozen=True)
class WorldParameters:
    """Parameters of the node `world`; those marked tunable may change while it runs."""

    suite: str = parameter('libero_object', 'Suite of the first task.', choices=SUITES)
    task_id: int = parameter(0, 'First task, an index into the suite.', '', 0, 9)
    layout: str = parameter(
        'standard', "Where objects lie: as LIBERO puts them, or 'shuffled' (not libero_goal).",
        choices=LAYOUTS)
    initial_state: int = parameter(
        0, "First episode's initial state, an index into the 50 that LIBERO gives for the task; "
        'with shuffled layouts their seed.', '', 0, 2**31 - 1)
    image_width: int = parameter(256, 'Width of both images.', 'px', 16, 4096)
    image_height: int = parameter(256, 'Height of both images.', 'px', 16, 4096)
    camera_steps: int = parameter(
        1, 'In real time, render the cameras once in so many control steps; the state comes with '
        'every one.', '', 1, 20, tunable=True)
    publish_clock: bool = parameter(
        False, 'Live on simulated time and publish it on /clock, for nodes with use_sim_time.')
    lock_step: bool = parameter(
        False, 'Step only on the command that belongs to the last observation, on simulated time; '
        'the policy node needs `pacing: observation`.')
    lock_step_timeout_s: float = parameter(
        2.0, 'In lock-step, step without motion when no action came for so long (wall time); '
        'longer than one inference.', 's', 0.05, 3600.0, tunable=True)
    command_timeout_s: float = parameter(
        0.2, 'In real time, largest age of a command from its stamp to its use.', 's', 0.001,
        10.0, tunable=True)


class WorldNode(Node):
    """Node `world`.

    Publishes `<camera>/image_raw` (and `/compressed`), rendered only while somebody subscribes,
    `ee_pose`, `gripper_state`, `world_status` and, by parameter, `/clock`; obeys `command`;
    serves `reset_world`. Everything published in one step bears the same stamp.

    on_failure: called once if the world thread fails (world thread); the log says why.
    Raises ParameterError if a parameter cannot be used.
    """

    def __init__(self, on_failure: Callable[[], None] = lambda: None, **options):
        super().__init__('world', **options)
        # First: the node must be destroyable whatever fails below.
        self._inbox = Inbox()
        self._stop_clock = threading.Event()
        self._threads: list[threading.Thread] = []
        store = ParameterStore(self, WorldParameters, lambda: True, self._apply_parameters)
        self._settings: WorldParameters = store.checked()
        if self.get_parameter('use_sim_time').value:
            raise ParameterError('The world makes simulated time and cannot follow it: set '
                                 'publish_clock instead of use_sim_time.')
        self._on_failure = on_failure
        self._lock_step = self._settings.lock_step
        self._publishes_clock = self._lock_step or self._settings.publish_clock
        self._time = (
            SteppedClock() if self._lock_step
            else PacedClock() if self._publishes_clock
            else SystemClock()
        )
        self._gripper = GRIPPER_OPEN
        self._deadline_s = 0.0
        self._create_endpoints()
        self._threads = [threading.Thread(target=self._run, name='world', daemon=True)]
        if self._publishes_clock and not self._lock_step:
            self._threads.append(
                threading.Thread(target=self._run_clock, name='world_clock', daemon=True))
        for thread in self._threads:
            thread.start()

    def _create_endpoints(self) -> None:
        observation = qos.observation_output()
        self._images, self._compressed = {}, {}
        for camera in CAMERAS:
            topic = f'{camera}/image_raw'
            self._images[camera] = self.create_publisher(Image, topic, observation)
            self._compressed[camera] = self.create_publisher(
                CompressedImage, f'{topic}/compressed', observation)
        self._pose = self.create_publisher(PoseStamped, 'ee_pose', observation)
        self._gripper_state = self.create_publisher(JointState, 'gripper_state', observation)
        self._status = self.create_publisher(WorldStatus, 'world_status', qos.event_output())
        self._clock_output = (
            self.create_publisher(Clock, '/clock', qos.clock_output())
            if self._publishes_clock else None
        )
        self.create_subscription(
            EndEffectorCommand, 'command', self._inbox.file, qos.command_input())
        self.create_service(ResetWorld, 'reset_world', self._reset_world)

    def destroy_node(self) -> None:
        """End the world thread, then remove the node from the graph."""
        self._inbox.close()
        self._stop_clock.set()
        for thread in self._threads:
            thread.join()
        super().destroy_node()

    # --- executor thread ---

    def _apply_parameters(self, parameters: WorldParameters) -> None:
        self._settings = parameters

    def _reset_world(self, request: ResetWorld.Request, response: ResetWorld.Response):
        # Waits for the world thread; commands that arrive meanwhile belong to no episode.
        try:
            episode: Episode = self._inbox.request(request).result()
        except ValueError as error:
            response.success, response.message = False, str(error)
        except CancelledError:
            response.success, response.message = False, 'The world is shutting down.'
        else:
            response.success = True
            response.message = str(episode)
            response.instruction, response.episode = episode.task.instruction, episode.number
        return response

    # --- clock thread ---

    def _run_clock(self) -> None:
        while not self._stop_clock.wait(CLOCK_PERIOD_S):
            self._publish_clock()

    def _publish_clock(self) -> None:
        self._clock_output.publish(Clock(clock=to_time(self._time.now_ns())))

    # --- world thread ---

    def _run(self) -> None:
        p = self._settings
        self._episodes = Episodes((p.image_width, p.image_height))
        try:
            self._begin(p.suite, p.task_id, p.layout, p.initial_state)
            while not self._inbox.closed:
                if request := self._inbox.next_request():
                    self._serve(*request)
                else:
                    self._make_step()
        except Exception:
            self.get_logger().fatal(f'The world failed:\n{traceback.format_exc()}')
            self._inbox.close()
            self._on_failure()
        finally:
            self._episodes.close()

    def _serve(self, request: ResetWorld.Request, future: Future) -> None:
        try:
            future.set_result(self._begin(
                request.suite, request.task_id, request.layout, request.initial_state))
        except ValueError as error:
            self._deadline_s = time.monotonic()
            future.set_exception(error)
        except Exception:
            future.cancel()
            raise

    def _begin(self, suite: str, task_id: int, layout: str, initial_state: int) -> Episode:
        """Start an episode and publish its first observation."""
        episode = self._episodes.begin(suite, task_id, layout, initial_state)
        self._gripper = GRIPPER_OPEN
        self._success = False
        self._inbox.forget_command()
        self._time.jump(RESET_JUMP_NS)
        if self._publishes_clock:
            self._publish_clock()
            time.sleep(JUMP_PAUSE_S)
        self._publish(None, self._time.now_ns())
        self._deadline_s = time.monotonic()
        self.get_logger().info(str(episode))
        return episode

    def _make_step(self) -> None:
        command = self._wait_in_lock_step() if self._lock_step else self._wait_in_real_time()
        if self._inbox.called_away:
            return
        actuation_ns = self._time.now_ns()
        if command is None:
            action = np.array([0.0] * 6 + [self._gripper])
        else:
            action = messages.to_action(command)
            self._gripper = action[6]
        world = self._episodes.world
        world.step(action)
        self._time.step(PERIOD_NS)
        if self._lock_step:
            self._publish_clock()
        if not self._success and world.success:
            self._success = True
            self.get_logger().info(f"Done after {world.steps} steps: '{world.task.instruction}'.")
        self._publish(command, actuation_ns)

    def _wait_in_real_time(self) -> EndEffectorCommand | None:
        self._deadline_s += PERIOD_NS / 1e9
        behind_s = time.monotonic() - self._deadline_s
        if behind_s > PERIOD_NS / 1e9:
            self._deadline_s += behind_s
            self.get_logger().warning(
                f'The world is {behind_s * 1e3:.0f} ms late: this machine cannot simulate and '
                'render 20 steps a second; make the images smaller.', throttle_duration_sec=10.0)
        if not self._inbox.wait_until(self._deadline_s):
            return None
        command = self._inbox.take_command(PATIENCE_S)
        if command is None or command.hold or not self._is_usable(command):
            return None
        timeout_ns = self._settings.command_timeout_s * 1e9
        age_ns = self._time.now_ns() - to_ns(command.header.stamp)
        if abs(age_ns) > timeout_ns:
            self._warn(f'A command {age_ns / 1e6:.0f} ms old is ignored; if that cannot be, its '
                       'sender lives on another clock: check use_sim_time.')
            return None
        return command

    def _wait_in_lock_step(self) -> EndEffectorCommand | None:
        target_time_ns = self._time.now_ns() + PERIOD_NS
        timeout_s = self._settings.lock_step_timeout_s
        command = self._inbox.wait_command(target_time_ns, timeout_s)
        if command is not None:
            return command if self._is_usable(command) else None
        if not self._inbox.called_away:
            self.get_logger().warning(
                f'No action for the last observation within {timeout_s} s; stepping without '
                'motion whenever that happens.', once=True)
        return None

    def _is_usable(self, command: EndEffectorCommand) -> bool:
        if command.header.frame_id != FRAME_ID:
            self._warn(f"A command in frame '{command.header.frame_id}' is ignored; "
                       f"set frame_id of the policy node to '{FRAME_ID}'.")
            return False
        try:
            messages.to_action(command)
        except ValueError as error:
            self._warn(str(error))
            return False
        return True

    def _publish(self, command: EndEffectorCommand | None, actuation_ns: int) -> None:
        """Publish the observation and what was done to get there."""
        header = Header(stamp=to_time(self._time.now_ns()), frame_id=FRAME_ID)
        world = self._episodes.world
        state = world.state()
        self._pose.publish(messages.to_pose(state, header))
        self._gripper_state.publish(messages.to_gripper_state(state, header))
        if self._lock_step or world.steps % self._settings.camera_steps == 0:
            self._publish_images(header.stamp)
        observation_ns = to_ns(command.observation_stamp) if command else 0
        command_ns = to_ns(command.header.stamp) if command else 0
        self._status.publish(WorldStatus(
            header=header,
            suite=world.task.suite,
            task_id=world.task.task_id,
            instruction=world.task.instruction,
            episode=self._episodes.present.number,
            step=world.steps,
            success=self._success,
            action_applied=command is not None,
            observation_age_ms=messages.age_ms(actuation_ns, observation_ns),
            command_age_ms=messages.age_ms(actuation_ns, command_ns),
        ))

    def _publish_images(self, stamp) -> None:
        outputs = [*self._images.values(), *self._compressed.values()]
        if not any(output.get_subscription_count() for output in outputs):
            return
        for camera, rgb in self._episodes.world.render().items():
            header = Header(stamp=stamp, frame_id=f'{camera}_optical')
            if self._images[camera].get_subscription_count():
                self._images[camera].publish(to_image_message(rgb, header))
            if self._compressed[camera].get_subscription_count():
                self._compressed[camera].publish(messages.to_compressed(rgb, header))

    def _warn(self, text: str) -> None:
        self.get_logger().warning(text, throttle_duration_sec=5.0)


def main(args=None):
    """Run the node until SIGINT or SIGTERM; exit with 1 if the world failed."""
    failed = threading.Event()

    def stop():
        failed.set()
        signal.raise_signal(signal.SIGTERM)

    run(partial(WorldNode, stop), args)
    leave(int(failed.is_set()))


if __name__ == '__main__':
    main()
