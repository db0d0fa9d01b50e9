"""Parses what an evaluation compares, as written on the command line.

    dense                                   the plain model
    lightvla:multiplicity_bias=true         one method with a setting
    lightvla:extra_random=8,seed=1+fastv    two methods, one after the other
    dense@runs/clone/checkpoint             on another checkpoint than the evaluation's
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vla_policy_node import acceleration
from vla_policy_node.checkpoints.hub import find_checkpoint
from vla_policy_node.common.plain_yaml import parse_plain_yaml
from vla_policy_node.policy.interface import Policy

if TYPE_CHECKING:
    from vla_policy_node.loop.parameters import PolicyParameters

STATE_ONLY = 'blind'  # its label in tables


@dataclass(frozen=True)
class Contender:
    """A policy under one set of acceleration methods, or the state-only baseline.

    label: its name in tables. settings: method -> setting -> value.
    checkpoint: directory to run instead of the evaluation's, None for that one.
    statistics_key: data set of that checkpoint to un-normalise with, None for that of the
        parameters.
    state_only: file of a state-only baseline, which needs no checkpoint.
    """

    label: str
    methods: tuple[str, ...] = ()
    settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    checkpoint: Path | None = None
    state_only: Path | None = None
    statistics_key: str | None = None

    def load(self, parameters: PolicyParameters, threads: int) -> Policy:
        """Return the policy with its methods, computing with so many threads.

        Raises ValueError for a checkpoint that cannot be used.
        """
        if self.state_only is not None:
            from vla_policy_node.training.state_only import StateOnlyPolicy

            return StateOnlyPolicy.load(self.state_only)
        key = self.statistics_key
        return parameters.load_policy(
            threads,
            checkpoint=self.checkpoint or parameters.checkpoint,
            statistics_key=parameters.statistics_key if key is None else key,
            methods=self.methods,
            method_settings=self.settings,
        )


def parse_contender(text: str) -> Contender:
    """Read 'method:setting=value,setting=value+method'; 'dense' means no methods.

    A checkpoint may follow after an '@'. Raises ValueError for a method, setting, value or
    checkpoint that does not exist, and for methods that cannot run together.
    """
    settings: dict[str, dict[str, object]] = {}
    methods, _, checkpoint = text.partition('@')
    for part in filter(None, (part.strip() for part in methods.split('+'))):
        name, _, chosen = part.partition(':')
        if name == 'dense' and not chosen:
            continue
        settings[name] = dict(_parse_setting(entry, text) for entry in chosen.split(',') if entry)
    acceleration.check_together(
        [acceleration.create(name, **chosen) for name, chosen in settings.items()])
    return Contender(
        text.strip() or 'dense', tuple(settings), settings,
        find_checkpoint(checkpoint.strip()) if checkpoint else None)


def _parse_setting(entry: str, text: str) -> tuple[str, object]:
    name, equals, value = entry.partition('=')
    if not (equals and name.strip() and value.strip()):
        raise ValueError(
            f"'{text}' has a setting '{entry}'; write it as 'method:setting=value'.")
    return name.strip(), parse_plain_yaml(value, f"The value of '{name.strip()}'")


def state_only_contender(path: Path) -> Contender:
    """Return the state-only baseline of a file that `training.state_only` wrote."""
    if not path.is_file():
        raise ValueError(f"There is no blind baseline '{path}'.")
    return Contender(STATE_ONLY, state_only=path)
