"""Starts the nodes of a system as processes, without `ros2 launch`.

    with System(describe({'world': True})) as system:
        system.wait()
"""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TextIO

from vla_policy_node.common.scoped import environment
from vla_policy_node.system.description import NodeSpec
from vla_policy_node.system.domain import free_domain
from vla_policy_node.system.files import share_directory

# Time for a node to end an inference, send its hold and free its model.
GRACE_S = 10.0
RESPAWN_S = 2.0  # from the death of a node that respawns to its next start
_COLOURS = (36, 33, 35, 32)
# Where Fast DDS finds its profile, and ours: of version 3 (Kilted), and of version 2 (Jazzy).
PROFILES = {3: ('FASTDDS_DEFAULT_PROFILES_FILE', 'fastdds.xml'),
            2: ('FASTRTPS_DEFAULT_PROFILES_FILE', 'fastrtps.xml')}
SUPERVISOR = 'VLA_SUPERVISOR'  # environment variable: the process that a node must not outlive


class NodeDiedError(RuntimeError):
    """A node ended that should have run on; the message says which one."""


class System:
    """A set of nodes, each a process of its own; a context manager that starts and stops them.

    Every line a node prints goes to `output` with its name in front; on a terminal, in colour.
    env: environment variables on top of this process's, for example ROS_DOMAIN_ID.
    The nodes end with this process, even if it is killed.
    """

    def __init__(
        self,
        nodes: Sequence[NodeSpec],
        env: Mapping[str, str] | None = None,
        output: TextIO | None = None,
        grace_s: float = GRACE_S,
    ):
        self._nodes = tuple(nodes)
        self._finite = {node.name for node in nodes if node.ends_the_run}
        self._env = {**os.environ, **middleware_environment(), **leash(),
                     'PYTHONUNBUFFERED': '1', **(env or {})}
        self._output = output or sys.stdout
        self._grace_s = grace_s
        width = max((len(node.name) for node in nodes), default=0)
        self._prefixes = {node.name: f'{node.name:<{width}} | ' for node in nodes}
        if self._output.isatty():
            self._prefixes = {
                name: f'\x1b[{colour}m{prefix}\x1b[0m' for (name, prefix), colour in zip(
                    self._prefixes.items(), itertools.cycle(_COLOURS))}
        self._processes: dict[str, subprocess.Popen] = {}
        self._due_s: dict[str, float] = {}  # when the dead are started again, on the steady clock
        self._readers: list[threading.Thread] = []

    def __enter__(self) -> 'System':
        """Start all nodes."""
        for node in self._nodes:
            self._start(node)
        return self

    def __exit__(self, *exception) -> None:
        """Stop all nodes."""
        self.stop()

    def _start(self, node: NodeSpec) -> None:
        process = subprocess.Popen(
            command_line(node), env=self._env, text=True, errors='replace',
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            # Ctrl-C reaches only the parent, which stops its children in its own way.
            start_new_session=True,
        )
        self._processes[node.name] = process
        reader = threading.Thread(
            target=self._forward, args=(process, self._prefixes[node.name]), daemon=True)
        reader.start()
        self._readers = [*(r for r in self._readers if r.is_alive()), reader]

    def _forward(self, process: subprocess.Popen, prefix: str) -> None:
        for line in process.stdout:
            self._print(f'{prefix}{line}')

    def _print(self, line: str) -> None:
        self._output.write(line)
        self._output.flush()

    def check(self) -> None:
        """Start again what has died and respawns, after RESPAWN_S; call it often.

        Raises NodeDiedError if another node has ended that should run on.
        """
        for node in self._nodes:
            code = self._processes[node.name].poll()
            if code is None or (code == 0 and node.name in self._finite):
                continue
            ended = f"Node '{node.name}' ended by itself ({_describe_exit(code)})"
            if not node.respawns:
                raise NodeDiedError(f'{ended}; its last messages say why.')
            if node.name not in self._due_s:
                self._due_s[node.name] = time.monotonic() + RESPAWN_S
                self._print(f'{ended}; it is started again.\n')
            elif time.monotonic() >= self._due_s[node.name]:
                del self._due_s[node.name]
                self._start(node)

    def pid(self, name: str) -> int:
        """Return the process id of a node."""
        return self._processes[name].pid

    def wait(self, until: Callable[[], bool] = lambda: False) -> None:
        """Return when `until()` is true or all is done, looked at ten times a second.

        Else as `check`.
        """
        while not (until() or self._is_done()):
            time.sleep(0.1)
            self.check()

    def _is_done(self) -> bool:
        return any(self._processes[name].poll() == 0 for name in self._finite)

    def stop(self) -> None:
        """Tell the nodes to end, in reverse order, wait for them, and kill what will not end.

        With SIGTERM, which ends a node that is still being loaded without a traceback.
        """
        running = [p for p in reversed(self._processes.values()) if p.poll() is None]
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(self._grace_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for reader in self._readers:
            reader.join(1.0)


def middleware_environment() -> dict[str, str]:
    """Return the environment variable that nodes need for large images, see config/fastdds.xml.

    Empty if the user has a profile of their own.
    """
    if any(os.environ.get(name) for name, _ in PROFILES.values()):
        return {}
    name, profile = PROFILES[fast_dds_version()]
    return {name: str(share_directory() / 'config' / profile)}


def fast_dds_version() -> int:
    """Return 2 or 3: the package of version 2 is called `fastrtps`, and Kilted has none."""
    prefixes = [*filter(None, os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)),
                sys.prefix]
    old = any((Path(prefix) / 'share' / 'fastrtps').is_dir() for prefix in prefixes)
    return 2 if old else 3


def leash() -> dict[str, str]:
    """Return the environment variable that has nodes end when this process does.

    However it dies: a robot must not move on with nobody left to stop it. nodes/ending.py obeys.
    """
    return {SUPERVISOR: str(os.getpid())}


def private_domain() -> AbstractContextManager:
    """Keep what this process says meanwhile, and its children, to themselves.

    Off the network, in a domain that no other such process uses; where the environment says
    otherwise, that counts.
    """
    chosen = {'ROS_DOMAIN_ID': str(free_domain()), 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}
    chosen.update((name, os.environ[name]) for name in chosen if name in os.environ)
    return environment(**chosen, **middleware_environment())


def command_line(node: NodeSpec) -> list[str]:
    """Return the command that runs one node."""
    return [sys.executable, '-m', node.module, '--ros-args', *node.full_arguments()]


def run(nodes: Sequence[NodeSpec]) -> int:
    """Run a system until SIGINT, SIGTERM, SIGHUP or the death of a node; return the exit code.

    SIGINT is KeyboardInterrupt, raised after everything has stopped.
    """
    stops: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: stops.append(number))
    try:
        with System(nodes) as system:
            system.wait(lambda: bool(stops))
    except NodeDiedError as error:
        print(error, file=sys.stderr)
        return 1
    if signal.SIGINT in stops:
        raise KeyboardInterrupt
    return 0


def _describe_exit(code: int) -> str:
    return f'signal {signal.Signals(-code).name}' if code < 0 else f'exit code {code}'
