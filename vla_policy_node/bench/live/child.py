"""Processes of the campaign: starts them, talks to them, watches them, always ends them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from vla_policy_node.system.processes import leash

VICTIM = 'vla_policy_node.bench.live.victim'


class Child:
    """A process in a session of its own whose output goes to a file; a context manager.

    A node ends when this process does, however that dies: nothing may go on in its domain.
    `log` is what it has written.
    """

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None):
        self._path = log
        with log.open('wb') as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, text=True,
                env={**os.environ, **leash(), 'PYTHONUNBUFFERED': '1', **(env or {})},
                start_new_session=True)
        self._writing = threading.Lock()

    def __enter__(self) -> 'Child':
        """Return it, running."""
        return self

    def __exit__(self, *_) -> None:
        """End it if it still runs."""
        self.end()

    @property
    def log(self) -> str:
        """Everything that was printed."""
        return self._path.read_text(errors='replace')

    @property
    def code(self) -> int | None:
        """The exit code, None while it runs."""
        return self.process.poll()

    def order(self, **what) -> None:
        """Give the victim an order; see `victim`."""
        with self._writing:
            self.process.stdin.write(json.dumps(what) + '\n')
            self.process.stdin.flush()

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float) -> float | None:
        """Return after how many seconds it had ended, None if it has not."""
        begun_s = time.monotonic()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        return time.monotonic() - begun_s

    def end(self) -> None:
        """Kill it if it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()
        self.process.stdin.close()


def start_victim(log: Path, parameters: Mapping[str, object], env: Mapping[str, str] | None = None,
                 module: str = VICTIM, remap: Sequence[str] = ()) -> Child:
    """Start a policy node with parameters."""
    given = [part for name, value in parameters.items()
             for part in ('-p', f'{name}:={_yaml(value)}')]
    names = [part for rule in remap for part in ('-r', rule)]
    return Child([sys.executable, '-m', module, '--ros-args', *given, *names], log, env)


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else json.dumps(
        list(value) if isinstance(value, tuple) else value)
