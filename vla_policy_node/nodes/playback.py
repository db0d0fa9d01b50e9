"""Two ways to pace a played bag: as recorded, or by the policy node's answers.

Both are for the playing thread of `player_node`.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from vla_policy_node.control.commander import Commander
from vla_policy_node.control.hold import Hold
from vla_policy_node.control.session import Session
from vla_policy_node.loop.inputs import RefusedError, SensorInputs
from vla_policy_node.loop.parameters import PolicyParameters
from vla_policy_node.nodes.subscriptions import CLOCK_FILED
from vla_policy_node.wire.cdr import MessageError
from vla_policy_node.wire.streams import InputStreams

if TYPE_CHECKING:
    from vla_policy_node.nodes.player_node import PlayerNode

CLOCK_PERIOD_S = 0.01


class PlaybackError(RuntimeError):
    """The bag cannot be played to its end; one sentence."""


class RealTime:
    """Plays at the pace of the recording, times `rate`."""

    def __init__(self, player: PlayerNode):
        self._player = player
        self._now_ns: int | None = None
        self._due_s = 0.0

    def reach(self, time_ns: int) -> None:
        """Advance time to this; /clock announces it in small steps."""
        if self._now_ns is None:
            self._now_ns, self._due_s = time_ns, time.monotonic()
            self._player.set_clock(time_ns)
        step_ns = round(CLOCK_PERIOD_S * 1e9)
        while self._now_ns < time_ns:
            ahead_ns = min(step_ns, time_ns - self._now_ns)
            self._now_ns += ahead_ns
            self._due_s += ahead_ns / 1e9 / self._player.rate
            time.sleep(max(0.0, self._due_s - time.monotonic()))
            self._player.set_clock(self._now_ns)

    def send(self, stream: str, raw: bytes) -> None:
        """Publish one sample."""
        self._player.publish(stream, raw)

    def begun(self) -> None:
        """Need nothing more."""

    def ended(self) -> None:
        """Need nothing more."""


class LockStep:
    """Continues once the node has filed each sample and answered each observation.

    It learns which observations there are from inputs of its own, built from the node's parameters
    and fed with the same samples in the same order.

    streams: what the policy needs; others are published and not waited for.
    """

    def __init__(
        self, player: PlayerNode, parameters: PolicyParameters, streams: InputStreams
    ):
        if parameters.pacing != 'observation':
            raise PlaybackError('Lock-step needs a policy node with `pacing: observation`.')
        self._player = player
        self._streams = streams
        commander = Commander(Session(), parameters.make_parts(streams=streams))
        self._inputs = SensorInputs(commander, streams)
        self._pairer, self._cameras = commander.parts.pairer, commander.parts.cameras
        self._now_ns = 0
        self._expected = player.commands

    def reach(self, time_ns: int) -> None:
        """Set the clock, and wait until the node has it."""
        if time_ns > self._now_ns:
            self._now_ns = time_ns
            self._player.set_clock(time_ns)
            self._player.wait(lambda: (self._player.filed(CLOCK_FILED) or 0) >= time_ns,
                              'the policy node to follow /clock')

    def send(self, stream: str, raw: bytes) -> None:
        """Publish one sample, and wait for its consequences."""
        player = self._player
        try:
            stamp_ns = self._streams.stamp_of(stream, raw)
        except MessageError:
            return
        player.publish(stream, raw)
        if stream not in self._streams.topics:
            return
        player.wait(lambda: player.filed(stream) == stamp_ns, f'the policy node to file {stream}')
        with suppress(RefusedError):
            self._inputs.file(stream, raw)
        self._await_command()

    def begun(self) -> None:
        """Wait for the command on what was there when the goal began."""
        self._pairer.rearm()
        self._cameras.begin()
        self._await_command()

    def ended(self) -> None:
        """Wait for the hold that a cancelled goal ends with."""
        self._expect()

    def _await_command(self) -> None:
        if self._pairer.wait(0.0) and not isinstance(self._pairer.take(self._now_ns), Hold):
            self._expect()

    def _expect(self) -> None:
        self._expected += 1
        player = self._player
        player.wait(lambda: player.commands >= self._expected, 'a command')
