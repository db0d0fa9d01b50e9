"""The plan of an evaluation: everything that determines its episodes, as one picklable value."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

from vla_policy_node import acceleration
from vla_policy_node.checkpoints.fingerprint import fingerprint
from vla_policy_node.evaluation.contenders import Contender
from vla_policy_node.evaluation.controls import CONTROLS
from vla_policy_node.evaluation.results import Key
from vla_policy_node.loop.parameters import PolicyParameters
from vla_policy_node.world.layouts import HELD_OUT_SEED, HELD_OUT_STATES, LAYOUTS, SPLITS
from vla_policy_node.world.libero_world import tasks

DEFAULT_EPISODES = 20
# Seeds of a task are consecutive; this many are reserved for each.
MAX_EPISODES = 100
_SEEDS_PER_RUN = 10_000
_SEEDS = HELD_OUT_SEED // _SEEDS_PER_RUN  # of one set of layouts


@dataclass(frozen=True)
class Plan:
    """One evaluation.

    parameters: the policy node's, with which every episode runs. image_size: (width, height) of
        the world's pictures in px.
    checkpoint: as given by the user: a directory, or an id of the hub.
    execute: actions of each chunk to use, 0 for all. horizon: control steps at most, 0 for the
        suite's. split: which of `layouts.SPLITS`. trace: directory for kept masks, None for none.
        threads: of torch, per worker.
    Raises ValueError for an impossible plan.
    """

    contenders: tuple[Contender, ...]
    parameters: PolicyParameters
    image_size: tuple[int, int]
    suite: str
    layout: str
    task_ids: tuple[int, ...]
    episodes: int
    checkpoint: str = ''
    seed: int = 0
    control: str = 'none'
    execute: int = 0
    horizon: int = 0
    split: str = 'development'
    trace: Path | None = None
    threads: int = 1

    def __post_init__(self):
        available = len(tasks(self.suite))
        if not self.task_ids or not all(0 <= task < available for task in self.task_ids):
            raise ValueError(f'{self.suite} has the tasks 0 to {available - 1}; choose of these.')
        for name, chosen, choices in (
            ('layout', self.layout, LAYOUTS), ('control', self.control, CONTROLS),
            ('split', self.split, SPLITS),
        ):
            if chosen not in choices:
                raise ValueError(f"{name} is '{chosen}'; choose one of {', '.join(choices)}.")
        # The world is deterministic: repeating a state would repeat the episode.
        most = HELD_OUT_STATES if self.layout == 'standard' else MAX_EPISODES
        if not 1 <= self.episodes <= most:
            raise ValueError(
                f'The {self.layout} layout has 1 to {most} held-out episodes per task, not '
                f'{self.episodes}.')
        if not 0 <= self.seed < _SEEDS:
            raise ValueError(f'seed is {self.seed}; take 0 to {_SEEDS - 1}.')
        labels = [contender.label for contender in self.contenders]
        if not labels or len(set(labels)) < len(labels):
            raise ValueError('Name at least one method, and each only once.')
        for contender in self.contenders:
            acceleration.check_execution(contender.methods, self.parameters.execution_mode)

    def layout_seed(self, task_id: int, episode: int) -> int:
        """Return the seed of an episode's layout, the same for every method."""
        first = SPLITS[self.split] + self.seed * _SEEDS_PER_RUN
        return first + task_id * MAX_EPISODES + episode

    @property
    def units(self) -> tuple[tuple[int, int], ...]:
        """All (task, episode), task by task, so that a worker can keep its world."""
        return tuple(
            (task, episode) for task in self.task_ids for episode in range(self.episodes))

    @property
    def keys(self) -> frozenset[Key]:
        """All (method, task, episode)."""
        return frozenset(
            (contender.label, *unit) for contender in self.contenders for unit in self.units)

    def identity(self) -> dict:
        """Return what results must share to be combined.

        Methods, tasks and the number of episodes are left out: an evaluation may be extended by
        them.
        """
        parameters = dataclasses.asdict(self.parameters)
        for name in ('checkpoint', 'methods', 'method_settings', 'threads', 'autostart'):
            del parameters[name]
        return {
            'checkpoint_sha256': fingerprint(Path(self.parameters.checkpoint)),
            'blind_sha256': [_sha256(c.state_only) for c in self.contenders if c.state_only],
            'other_checkpoints_sha256': sorted({
                fingerprint(c.checkpoint) for c in self.contenders if c.checkpoint}),
            'suite': self.suite,
            'layout': self.layout,
            'split': self.split,
            'seed': self.seed,
            'control': self.control,
            'execute': self.execute,
            'horizon': self.horizon,
            'image_size': list(self.image_size),
            'traced': self.trace is not None,
            'threads': self.threads,
            'parameters': {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in parameters.items()
            },
        }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
