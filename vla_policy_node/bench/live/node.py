"""`vla bench node`: the cost of the ROS side while the policy infers continuously."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from vla_msgs.msg import ActionChunk, EndEffectorCommand, PolicyStatus
from vla_msgs.srv import StartInstruction
from vla_policy_node.common.code_version import date_and_code
from vla_policy_node.common.machine import processor_name
from vla_policy_node.common.terminal import fitted
from vla_policy_node.common.worker_pool import interrupts_blocked
from vla_policy_node.control.hold import HoldReason
from vla_policy_node.control.latency import percentiles
from vla_policy_node.nodes import qos
from vla_policy_node.nodes.messages import to_ns
from vla_policy_node.outputs.folder import claim, seal
from vla_policy_node.policy.interface import CAMERAS
from vla_policy_node.system.description import describe
from vla_policy_node.system.processes import System, private_domain

COMMAND = 'vla bench node'  # whose files they are
LOG, FIGURES = 'nodes.log', 'bench_node.json'
START_TIMEOUT_S = 120.0
CAMERA_RATE_HZ = 30.0
CALLBACK_SECONDS = 10.0  # at most


class Listener(Node):
    """Keeps the stamps of commands and the figures of inferences (its spinning thread)."""

    def __init__(self):
        super().__init__('bench')
        self.stamps_ns: list[int] = []
        self.moving = 0
        self.chunks: list[ActionChunk] = []
        self.status: PolicyStatus | None = None
        self.create_subscription(
            EndEffectorCommand, 'command', self._on_command, qos.command_input())
        self.create_subscription(
            ActionChunk, 'action_chunk', self.chunks.append, qos.event_output())
        self.create_subscription(
            PolicyStatus, 'policy_status', self._on_status, qos.event_output())
        self.start = self.create_client(StartInstruction, 'policy/start')
        self.cancel = self.create_client(Trigger, 'policy/cancel')

    def _on_command(self, msg: EndEffectorCommand) -> None:
        self.stamps_ns.append(to_ns(msg.header.stamp))
        self.moving += msg.hold_reason.code == HoldReason.NONE

    def _on_status(self, msg: PolicyStatus) -> None:
        self.status = msg


def measure(
    duration_s: float, arguments: dict[str, str | bool], out: Path, console: Console
) -> dict:
    """Run cameras and policy for duration_s and return the figures."""
    # The stand-in's arm never moves, whatever the commands.
    nodes = describe({**arguments, 'guard': 'false', 'visualizer': False, 'autostart': True},
                     {'policy': {'max_tracking_error_m': 0.0}})
    with ((out / LOG).open('w') as log, private_domain(), _cameras(),
          System(nodes, output=log) as system):
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        listener = Listener()
        executor = SingleThreadedExecutor()
        executor.add_node(listener)
        thread = threading.Thread(target=executor.spin, daemon=True)
        thread.start()
        try:
            _wait(system, lambda: listener.status is not None
                  and listener.status.lifecycle_state == 'active')
            seconds = min(duration_s, CALLBACK_SECONDS)
            share = {kind: _callback_share(system, kind == 'raw', seconds)
                     for kind in ('raw', 'deserialised')}
            request = StartInstruction.Request(instruction='pick up the bowl')
            request.max_duration.sec = round(duration_s) + 60
            answer = listener.start.call(request)
            if not answer.success:
                raise RuntimeError(answer.message)
            time.sleep(2.0)  # the first chunk
            listener.stamps_ns.clear()
            listener.moving = 0
            listener.chunks.clear()
            pid = system.pid('policy')
            memory_mb = []
            for _ in track(range(round(duration_s)), 'measuring', console=console):
                time.sleep(1.0)
                system.check()
                memory_mb.append(_resident_mb(pid))
            listener.cancel.call(Trigger.Request())
        finally:
            executor.shutdown()
            thread.join()
            listener.destroy_node()
            rclpy.try_shutdown()
    return _summarise(listener, memory_mb, share, duration_s)


@contextmanager
def _cameras() -> Iterator[None]:
    """Publish both cameras and the state from another process."""
    with interrupts_blocked():
        process = subprocess.Popen(
            [sys.executable, '-m', 'vla_policy_node.bench.live.traffic', '--ros-args', '-p',
             f'camera_rate_hz:={CAMERA_RATE_HZ}'])
    try:
        yield
    finally:
        process.terminate()
        process.wait(10.0)


def _wait(system: System, condition) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not condition():
        system.check()
        if time.monotonic() > deadline:
            raise RuntimeError('Policy node and cameras did not start in time; see nodes.log.')
        time.sleep(0.05)


def _callback_share(system: System, raw: bool, seconds: float) -> float:
    """Return the share of one core that a thread spends on receiving both cameras.

    That thread holds the interpreter lock for nearly all of its processor time, so this bounds the
    time that the worker loses to callbacks. Most of it is the executor's own work per message.
    """
    node = rclpy.create_node('receiver')
    seen = set()
    for camera in CAMERAS:
        node.create_subscription(Image, f'{camera}/image_raw', lambda msg, c=camera: seen.add(c),
                                 qos.camera_input(), raw=raw)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    _wait(system, lambda: executor.spin_once(timeout_sec=0.1) or len(seen) == len(CAMERAS))
    start, cpu = time.monotonic(), time.thread_time()
    while time.monotonic() < start + seconds:
        executor.spin_once(timeout_sec=0.1)
    share = (time.thread_time() - cpu) / (time.monotonic() - start)
    executor.shutdown()
    node.destroy_node()
    return share


def _resident_mb(pid: int) -> float:
    pages = int(Path(f'/proc/{pid}/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 1e6


def _summarise(
    listener: Listener, memory_mb: Sequence[float], share: dict, duration_s: float
) -> dict:
    intervals_ms = np.diff(listener.stamps_ns) / 1e6
    period_ms = float(np.median(intervals_ms))
    ages_ms = [chunk.observation_age_ms for chunk in listener.chunks]
    tenth = max(1, len(memory_mb) // 10)
    counters = dict(zip(listener.status.counter_names,
                        map(int, listener.status.counter_values), strict=True))
    return {
        'duration_s': duration_s,
        'machine': f'{processor_name()}, {os.cpu_count()} cores',
        **date_and_code(),
        'command_rate_hz': 1e3 / float(np.mean(intervals_ms)),
        'command_jitter_ms': percentiles(np.abs(intervals_ms - 1e3 / round(1e3 / period_ms))),
        'moving_share': listener.moving / max(1, len(listener.stamps_ns)),
        'inferences': len(listener.chunks),
        'inference_ms': percentiles([chunk.inference_ms for chunk in listener.chunks]),
        'observation_age_at_inference_ms': percentiles(ages_ms),
        'beyond_frame_interval_ms': float(np.median(ages_ms)) - 1e3 / CAMERA_RATE_HZ,
        'image_callback_core_share': share,
        'memory_start_mb': float(np.median(memory_mb[:tenth])),
        'memory_end_mb': float(np.median(memory_mb[-tenth:])),
        'counters': counters,
    }


def table(figures: dict) -> Table:
    """Return the figures for a terminal."""
    rows = Table(title=f'Two 640x480 cameras at {CAMERA_RATE_HZ:g} Hz, inference all the time, '
                       f'{figures["duration_s"]:g} s, {figures["machine"]}', show_header=False)
    jitter, age = figures['command_jitter_ms'], figures['observation_age_at_inference_ms']
    share, inference = figures['image_callback_core_share'], figures['inference_ms']
    for name, value in (
        ('command rate', f"{figures['command_rate_hz']:.3f} Hz"),
        ('control-timer jitter p50 / p95 / p99',
         f"{jitter['p50']:.2f} / {jitter['p95']:.2f} / {jitter['p99']:.2f} ms"),
        ('inferences', f"{figures['inferences']}"),
        ('inference p50 / p95', f"{inference['p50']:.0f} / {inference['p95']:.0f} ms"),
        ('image stamp to start of inference p50 / p95',
         f"{age['p50']:.1f} / {age['p95']:.1f} ms"),
        ('the same beyond the frame interval, p50',
         f"{figures['beyond_frame_interval_ms']:.1f} ms"),
        ('core share of image callbacks, raw / deserialised',
         f"{share['raw']:.1%} / {share['deserialised']:.1%}"),
        ('memory of the policy node, start / end',
         f"{figures['memory_start_mb']:.0f} / {figures['memory_end_mb']:.0f} MB"),
    ):
        rows.add_row(name, value)
    return rows


def run(duration_s: float, arguments: dict[str, str | bool], out: Path, console: Console) -> None:
    """Measure, print the table, write bench_node.json."""
    claim(out, [LOG, FIGURES], COMMAND)
    figures = measure(duration_s, arguments, out, console)
    console.print(fitted(table(figures)))
    (out / FIGURES).write_text(json.dumps(figures, indent=2) + '\n')
    seal(out, COMMAND, [LOG, FIGURES])
