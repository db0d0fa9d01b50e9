"""Configuration of a training run, read from YAML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import yaml

from vla_policy_node.common.plain_yaml import read_regular
from vla_policy_node.training import stages
from vla_policy_node.training.losses import STATE_LOSSES

_LARGEST_BYTES = 1 << 20
# Entry -> the smallest value with a meaning.
_LEAST = {
    'steps': 1, 'batch': 1, 'learning_rate': 0.0, 'warmup_steps': 0, 'weight_decay': 0.0,
    'gradient_clip': 0.0, 'ema': 0.0, 'tokens_kept': 0, 'chunk_length': 0, 'scenes_share': 0.0,
    'crop_shift': 0.0, 'colour_strength': 0.0, 'lora_rank': 0, 'repeated_diffusion_steps': 1,
    'seed': 0, 'validate_every_steps': 1, 'validation_frames': 1, 'save_every_s': 0.0,
}


@dataclass(frozen=True)
class TrainingConfig:
    """One stage. `config/training/*.yaml` explain the entries and hold the shipped values.

    stage: names the run, and decides what is special about it (see `training.stages`).
    steps, batch: optimiser steps, and samples per step over all processes.
    learning_rate: peak of a linear warm-up (`warmup_steps`) and a cosine down to a 20th.
    ema: decay of the averaged weights, which validation and the final checkpoint use.
    losses: weight of each of `stages.losses()`; those not named are 0 and not computed.
    tokens_kept: visual tokens of each camera that a step runs on, 0 for all (see
        `token_sampling`).
    chunk_length: time steps of the chunk, 0 for the checkpoint's own. Weights do not depend on
        it, and a pass without actions to learn is cheaper with one.
    scenes_share: share of a batch that comes from still scenes, which carry no actions.
    crop_shift, colour_strength: see `augmentation`.
    frozen: beginnings of the names of parameters that stay as they are.
    objective: entries that only this stage has; in a file they stand beside the others.
    lora_rank: train low-rank updates of all linear layers of vision encoders, projector and
        language model instead of their weights; 0 trains the weights.
    repeated_diffusion_steps: noises that the losses 'noise' and 'flow' draw for each sample.
    """

    stage: str
    steps: int
    batch: int = 32
    learning_rate: float = 5e-4
    warmup_steps: int = 100
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    ema: float = 0.999
    losses: Mapping[str, float] = field(default_factory=lambda: {'action': 1.0})
    tokens_kept: int = 0
    chunk_length: int = 0
    scenes_share: float = 0.0
    crop_shift: float = 1.0
    colour_strength: float = 1.0
    frozen: tuple[str, ...] = ()
    objective: Mapping[str, object] = field(default_factory=dict)
    lora_rank: int = 0
    repeated_diffusion_steps: int = 8
    seed: int = 0
    validate_every_steps: int = 250
    validation_frames: int = 128
    save_every_s: float = 120.0

    def __post_init__(self):
        object.__setattr__(self, 'stage', stages.current_name(self.stage))
        stage = stages.named(self.stage)
        for name in ('steps', 'batch', 'validate_every_steps', 'validation_frames'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} is {getattr(self, name)}; it must be at least 1.')
        for name in ('learning_rate', 'gradient_clip', 'save_every_s'):
            if not 0 < getattr(self, name) < float('inf'):
                raise ValueError(f'{name} is {getattr(self, name)}; it must be above 0.')
        for name in ('warmup_steps', 'tokens_kept', 'chunk_length', 'lora_rank', 'weight_decay',
                     'seed'):
            if not 0 <= getattr(self, name) < float('inf'):
                raise ValueError(f'{name} is {getattr(self, name)}; it must be 0 or more.')
        for name in ('ema', 'scenes_share'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name} is {getattr(self, name)}; it must be from 0 to 1.')
        if not self.weighed or not all(
                0 <= weight < float('inf') for weight in self.losses.values()):
            raise ValueError('losses must have weights of 0 or more, and one above 0.')
        for name in self.losses:
            if name not in stages.losses():
                raise ValueError(
                    f'There is no loss {name!r}; choose from {", ".join(stages.losses())}.')
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise ValueError(f'{name} is {value}; it must be at least {least}, and finite.')
        for name, value in self.losses.items():
            if not 0.0 <= value < math.inf:
                raise ValueError(f'The loss {name!r} has the weight {value}; take 0 or more.')
        object.__setattr__(self, 'objective', stage.complete(self.objective))
        stage.check_config(self)

    @property
    def weighed(self) -> tuple[str, ...]:
        """Names of the losses that count."""
        return tuple(name for name, weight in self.losses.items() if weight)

    @property
    def runs_language_model(self) -> bool:
        """Whether any loss reads what comes out of the language model."""
        reading = (*STATE_LOSSES, *stages.named(self.stage).state_losses)
        return any(name in reading for name in self.weighed)

    def document(self) -> dict:
        """Return the entries as plain values, for files."""
        values = asdict(self) | {'frozen': list(self.frozen), 'losses': dict(self.losses)}
        return values | values.pop('objective')


def read_training_config(path: Path, changes: Mapping[str, object]) -> TrainingConfig:
    """Read YAML and apply `changes` on top; ValueError for an entry that is not known."""
    try:
        document = yaml.safe_load(read_regular(path, _LARGEST_BYTES).decode())
    except (ValueError, yaml.YAMLError) as error:
        where = getattr(error, 'problem_mark', None)
        place = f' in line {where.line + 1}' if where else ''
        raise ValueError(f"'{path}' cannot be read as YAML{place}.") from error
    if not isinstance(document or {}, dict):
        raise ValueError(f"'{path}' is no list of entries like 'steps: 100'.")
    document = {**(document or {}), **changes}
    known = {entry.name: entry.type for entry in fields(TrainingConfig)}
    del known['objective']
    stage = stages.current_name(str(document.get('stage')))
    own = {name: type(default).__name__ for name, default in stages.named(stage).entries.items()
           } if stage in stages.available() else {}
    for name in document:
        if name not in known | own:
            raise ValueError(
                f'{path}: there is no entry {name!r}; known are {", ".join(known | own)}.')
        document[name] = _typed(path, (known | own)[name], name, document[name])
    for name in ('stage', 'steps'):
        if name not in document:
            raise ValueError(f'{path} does not say {name!r}.')
    objective = {name: document.pop(name) for name in own if name in document}
    return TrainingConfig(**document, objective=objective)


def _typed(path: Path, kind: str, name: str, value: object) -> object:
    """Return the value as its entry wants it; YAML reads 1e-3, without a point, as a word."""
    if kind == 'float' and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif kind.startswith('tuple') and isinstance(value, list | tuple):
        return tuple(value)
    elif kind.startswith('Mapping') and isinstance(value, Mapping):
        return {key: _typed(path, 'float', f'{name}.{key}', item) for key, item in value.items()}
    elif type(value).__name__ == kind:
        return value
    raise ValueError(f'{path}: {name} takes a {kind.partition("[")[0].lower()}, not {value!r}.')
