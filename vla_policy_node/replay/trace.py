"""Trace of one policy on one bag: its chunks, its commands and their cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from vla_policy_node.control.action_spec import ActionSpec
from vla_policy_node.control.commander import Command
from vla_policy_node.control.hold import Hold
from vla_policy_node.loop.worker import Result
from vla_policy_node.policy.interface import PolicyDescription, TokenSelection


@dataclass(frozen=True, eq=False)
class TracedInference:
    """One chunk without its pictures: about one kilobyte.

    stamp_ns: of the observation. camera_stamps_ns: of each camera's picture. age_ns: stamp to
    start of work. epoch: counts goals. actions: [K, 7], action units. kept: camera -> bits of the
    grid. stage_ms: wall time, the only field that differs between two runs.
    """

    stamp_ns: int
    camera_stamps_ns: Mapping[str, int]
    age_ns: int
    spread_ns: int
    epoch: int
    instruction: str
    actions: np.ndarray
    kept: Mapping[str, np.ndarray]
    tokens_kept: int
    flops: int
    stage_ms: Mapping[str, float]


@dataclass(frozen=True)
class Grid:
    """Where the tokens of one camera lie on its picture, see `policy.TokenSelection`."""

    shape: tuple[int, int]
    crop: tuple[float, float, float, float]
    camera_transform: str


@dataclass(eq=False)
class Trace:
    """Everything of one run; grows by about a kilobyte per inference, never by a picture.

    label: what the report calls it. commands: time (ns) and what was sent. counts: everything
    dropped, stale, limited or held, by name, as in the node's status. refusals: stream and
    sentence of refused samples. problems: what the policy failed on. remarks: what is odd about
    the states it was told. held, ages_ns: why inputs could not be used at the end, and how old the
    last sample of each stream was.
    """

    label: str
    spec: ActionSpec
    period_ns: int
    execution_mode: str
    description: PolicyDescription
    inferences: list[TracedInference] = field(default_factory=list)
    commands: list[tuple[int, Command]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    held: Hold | None = None
    ages_ns: Mapping[str, int] = field(default_factory=dict)
    tokens_total: int = 0
    method: str = ''

    def add(self, result: Result) -> None:
        """Store one inference."""
        chunk, pair = result.chunk, result.pair
        for selection in chunk.selections:
            self.grids[selection.camera] = Grid(
                selection.kept.shape, selection.crop, selection.camera_transform)
        self.tokens_total, self.method = chunk.tokens_total, chunk.method
        self.inferences.append(TracedInference(
            pair.stamp_ns, {camera: pair.stamps_ns[camera] for camera in result.headers},
            result.observation_age_ns, pair.spread_ns, result.goal.epoch,
            result.goal.instruction, chunk.actions,
            {s.camera: np.packbits(s.kept) for s in chunk.selections},
            chunk.tokens_kept, chunk.flops, chunk.stage_ms,
        ))

    def selections(self, inference: TracedInference) -> dict[str, TokenSelection]:
        """Return the kept tokens of one inference by camera; the scores were not kept."""
        result = {}
        for camera, bits in inference.kept.items():
            grid = self.grids[camera]
            kept = np.unpackbits(bits, count=grid.shape[0] * grid.shape[1]).astype(bool)
            result[camera] = TokenSelection(
                camera, kept.reshape(grid.shape), np.empty(0, np.float32), grid.crop,
                grid.camera_transform)
        return result

    def metric(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return actions [N, 7] as displacements [N, 6] (m, rad) and openings [N] (0 to 1)."""
        deltas = [self.spec.to_command(action) for action in actions]
        if not deltas:
            return np.zeros((0, 6)), np.zeros(0)
        return (np.array([[*d.translation_m, *d.rotation_rad] for d in deltas]),
                np.array([d.gripper for d in deltas]))
