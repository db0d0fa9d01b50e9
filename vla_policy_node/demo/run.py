"""`vla demo`: brings the system up, runs episodes of named instructions, reports."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

import numpy as np
import rclpy
from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vla_msgs.action import ExecuteInstruction
from vla_msgs.msg import PolicyInfo
from vla_msgs.srv import ResetWorld
from vla_policy_node.common.terminal import fitted
from vla_policy_node.control.hold import HoldReason
from vla_policy_node.demo import report
from vla_policy_node.demo.recorder import DemoRecorder, RecordedEpisode
from vla_policy_node.demo.scenes import Scene
from vla_policy_node.outputs.folder import claim, clear, seal
from vla_policy_node.system.description import describe
from vla_policy_node.system.processes import NodeDiedError, System, private_domain
from vla_policy_node.system.recorded import RECORDED_PARAMETERS, RECORDED_ROBOT

PACES = ('auto', 'real-time', 'lock-step')
START_TIMEOUT_S = 90.0
ANSWER_TIMEOUT_S = 60.0
CONTROL_HZ = 20.0
PROBE_STEPS = 60
LOG_TAIL = 8
COMMAND = 'vla demo'  # whose files they are
BAG, LOG, FIGURES = 'bag', 'nodes.log', 'demo.json'
# A success is shown for this long before the next episode begins.
LINGER_S = 0.5


class DemoError(RuntimeError):
    """The demo could not run; one sentence says why."""


class TooSlowError(DemoError):
    """The policy cannot keep up with the world in real time."""


class Demo:
    """Episodes in a running system (main thread); a thread of its own spins the recorder."""

    def __init__(self, system: System):
        self._system = system
        self.recorder = DemoRecorder()
        self._reset = self.recorder.create_client(ResetWorld, 'reset_world')
        self._action = ActionClient(self.recorder, ExecuteInstruction, 'execute_instruction')
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.recorder)
        self._thread = threading.Thread(target=self._executor.spin, name='demo', daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._executor.shutdown()
        self._thread.join()
        self.recorder.destroy_node()

    def wait_ready(self) -> None:
        """Block until the policy node is active and the world runs."""
        recorder = self.recorder
        self._wait(lambda: recorder.status is not None and recorder.info is not None
                   and recorder.status.lifecycle_state == 'active',
                   START_TIMEOUT_S, 'the policy node to become active')
        self._wait(lambda: recorder.world is not None and self._reset.service_is_ready()
                   and self._action.server_is_ready(), START_TIMEOUT_S, 'the world to run')

    def probe(self, scene: Scene) -> None:
        """Raise TooSlowError if most control periods of a short episode have no action."""
        episode = self.run_episode(scene, PROBE_STEPS, lambda episode: None)
        settled = episode.commands[len(episode.commands) // 3:]
        moving = sum(reason is HoldReason.NONE for _, reason in settled)
        if moving < len(settled) / 2:
            slow = f'{np.median(episode.inference_ms):.0f} ms' if episode.inference_ms else 'long'
            raise TooSlowError(
                f'This machine is too slow for real time: an inference takes {slow}.')

    def run_episode(
        self, scene: Scene, steps: int, on_step: Callable[[RecordedEpisode], None]
    ) -> RecordedEpisode:
        """Reset the world, follow its instruction for at most `steps` control steps."""
        answer = self._await(
            self._reset.call_async(ResetWorld.Request(**asdict(scene))), 'the world to reset')
        if not answer.success:
            raise DemoError(answer.message)
        goal = ExecuteInstruction.Goal(instruction=answer.instruction)
        goal.max_duration.sec, fraction = divmod(steps, round(CONTROL_HZ))
        goal.max_duration.nanosec = round(fraction / CONTROL_HZ * 1e9)
        episode = self.recorder.begin(answer.instruction, scene.task_id)
        handle = self._await(self._action.send_goal_async(goal), 'the goal to be accepted')
        if not handle.accepted:
            raise DemoError(f"The policy node rejected the goal '{answer.instruction}'.")
        result = handle.get_result_async()
        while not result.done():
            self._system.check()
            on_step(episode)
            time.sleep(0.05)
            if episode.success:
                time.sleep(LINGER_S)
                self._await(handle.cancel_goal_async(), 'the goal to be cancelled')
                break
        status = self._await(result, 'the goal to end').status
        self.recorder.end()
        if status == GoalStatus.STATUS_ABORTED:
            raise DemoError(f'The goal was aborted: {result.result().result.text}')
        on_step(episode)
        return episode

    def _await(self, future: Future, what: str):
        self._wait(future.done, ANSWER_TIMEOUT_S, what)
        return future.result()

    def _wait(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            self._system.check()
            if time.monotonic() > deadline:
                raise DemoError(f'Waited {timeout_s:.0f} s for {what}.')
            time.sleep(0.02)


def run_demo(
    out: Path, scenes: Sequence[Scene], steps: int, pace: str,
    arguments: dict[str, str | bool], console: Console,
) -> int:
    """Run the demo and write its files; return the exit code, 0 only if the system really ran.

    scenes: one per episode, all of one suite.
    pace: 'real-time', 'lock-step' (the world waits for every action) or 'auto': real time if
        this machine infers fast enough, else lock-step.
    arguments: for `system.describe`, for example checkpoint and config.
    Raises DemoError, OutputError or SystemDescriptionError, which say what is wrong.
    """
    files = [LOG, FIGURES, *report.picture_names(len(scenes)), *_bag_names()]
    claim(out, files, COMMAND, anew=True)
    log_path, bag = out / LOG, out / BAG
    try:
        with log_path.open('w') as log, private_domain():
            def record(lock_step: bool) -> tuple[list[RecordedEpisode], DemoRecorder]:
                return _record(bag, lock_step, scenes, steps, arguments, log, console)

            recorded, recorder, lock_step = _at_pace(pace, record, console)
    except (DemoError, NodeDiedError) as error:
        last = log_path.read_text().splitlines()[-LOG_TAIL:]
        more = ['', *last] if last else []
        raise DemoError(f'{error}' + f' The end of {log_path}:' * bool(last) + '\n'.join(more)
                        ) from None
    except KeyboardInterrupt:
        clear(out, COMMAND)
        raise
    info = recorder.info
    summary = report.summarise(
        recorded, recorder.tokens_total, 1e3 / CONTROL_HZ, real_time=not lock_step)
    summary |= {'suite': scenes[0].suite, 'layout': scenes[0].layout,
                'checkpoint': info.checkpoint, 'trained': info.trained,
                'methods': list(info.methods), 'execution_mode': info.execution_mode,
                'optimisation': info.optimisation, 'preprocessing': info.preprocessing}
    report.write_json(out / FIGURES, summary)
    with console.status('drawing ...'):
        files = report.write_pictures(recorded, out)
    seal(out, COMMAND)
    console.print(fitted(report.table(summary)))
    if not info.trained:
        console.print('The policy is UNTRAINED (random weights from a seed): it reacts '
                      'to what the cameras show, it cannot do the tasks.')
    files = [*files, out / FIGURES, bag]
    console.print('Look at:', *(f'  {path}' for path in files), sep='\n', markup=False,
                  soft_wrap=True)
    found = report.problems(summary)
    for problem in found:
        console.print(problem, style='red', markup=False)
    return 1 if found else 0


def _at_pace(
    pace: str, record: Callable[[bool], tuple[list[RecordedEpisode], DemoRecorder]],
    console: Console,
) -> tuple[list[RecordedEpisode], DemoRecorder, bool]:
    """Return what was recorded, and whether in lock-step."""
    if pace != 'lock-step':
        try:
            return *record(False), False
        except TooSlowError as error:
            if pace == 'real-time':
                raise
            console.print(f'{error} Going on in lock-step: the world waits for every action.')
    return *record(True), True


def _record(
    bag: Path, lock_step: bool, scenes: Sequence[Scene], steps: int,
    arguments: dict[str, str | bool], log: TextIO, console: Console,
) -> tuple[list[RecordedEpisode], DemoRecorder]:
    """Run the system once and return the episodes; the bag of it can be replayed.

    Raises TooSlowError if real time is out of reach.
    """
    with console.status('building the world and the policy (once per machine) ...'):
        overrides: dict[str, dict[str, object]] = {
            'visualizer': {'max_rate_hz': float(report.OVERLAY_RATE_HZ)}}
        overrides['policy'] = {**_statistics(arguments, scenes[0].suite)}
        if lock_step:
            # Time stands still during an inference, so each chunk is played to its end.
            overrides['policy'] |= {'execution_mode': 'sync'}
        _make_way(bag)
        nodes = describe({**arguments, 'world': True, 'visualizer': True, 'autostart': True,
                          'record': str(bag), 'lock_step': lock_step}, overrides)
    with System(nodes, output=log) as system:
        # At Ctrl-C the recorder must outlive what stops the nodes.
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        demo = Demo(system)
        try:
            with console.status('starting world, policy and visualizer ...'):
                demo.wait_ready()
            if not lock_step:
                with console.status('trying the pace of this machine ...'):
                    demo.probe(scenes[0])
            _introduce(demo.recorder.info, console)
            recorded = _run_episodes(demo, scenes, steps, console)
        finally:
            demo.close()
            rclpy.try_shutdown()
    return recorded, demo.recorder


def _statistics(arguments: dict[str, str | bool], suite: str) -> dict[str, str]:
    """Return the parameter that says whose statistics a checkpoint of several suites is to use.

    ValueError if it knows several data sets, and none of the suite.
    """
    if not (arguments.get('checkpoint') or arguments.get('config')):
        return {}  # those that come with the package know one
    from vla_policy_node.checkpoints.hub import find_checkpoint
    from vla_policy_node.checkpoints.layout import statistics_key

    policy = next(node for node in describe({**arguments, 'world': True}) if node.name == 'policy')
    if policy.parameters['statistics_key']:
        return {}
    directory = find_checkpoint(str(policy.parameters['checkpoint']))
    key = statistics_key(directory, suite)
    return {'statistics_key': key} if key else {}


def _bag_names() -> list[str]:
    return [f'{BAG}/{name}' for name in (
        f'{BAG}.mcap', 'metadata.yaml', RECORDED_PARAMETERS, RECORDED_ROBOT)]


def _make_way(bag: Path) -> None:
    """Remove the bag of the pace that failed. Raises DemoError."""
    clear(bag.parent, COMMAND, bag.name)
    claim(bag.parent, _bag_names(), COMMAND)
    if bag.exists():
        raise DemoError(f"'{bag}' holds what no demo wrote; move it away or choose another --out.")


def _run_episodes(
    demo: Demo, scenes: Sequence[Scene], steps: int, console: Console
) -> list[RecordedEpisode]:
    recorded = []
    with _progress(console) as progress:
        for number, scene in enumerate(scenes):
            bar = progress.add_task(f'episode {number + 1}', total=steps, now='')

            def show(episode: RecordedEpisode, bar=bar):
                progress.update(bar, completed=min(episode.world_steps, steps),
                                now=_describe(episode))

            recorded.append(demo.run_episode(scene, steps, show))
            console.print(f'{number + 1}: {recorded[-1].instruction}', markup=False)
    return recorded


def _introduce(info: PolicyInfo, console: Console) -> None:
    console.print(f'{info.architecture}, {info.parameters / 1e6:.1f} M parameters on '
                  f'{info.device}, {"+".join(info.methods) or "dense"}, '
                  f'optimisation {info.optimisation}, preprocessing {info.preprocessing}, '
                  f'{info.execution_mode}, ROS_DOMAIN_ID {os.environ["ROS_DOMAIN_ID"]}')


def _progress(console: Console) -> Progress:
    # 60 columns: the instruction has a line of its own.
    return Progress(TextColumn('{task.description}'), BarColumn(8), MofNCompleteColumn(),
                    TimeElapsedColumn(), TextColumn('{task.fields[now]}', markup=False),
                    console=console)


def _describe(episode: RecordedEpisode) -> str:
    parts = ['success'] if episode.success else []
    if episode.inference_ms:
        parts += [f'{episode.inference_ms[-1]:.0f} ms', f'{episode.tokens_kept[-1]} tokens']
    return ', '.join(parts)
