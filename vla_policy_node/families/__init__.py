"""Families of policies by the `head` of their config.json: one file each, found by being there."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

from vla_policy_node.checkpoints.adapter import refuse_both
from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.layout import (
    PARTS,
    part_files,
    read_document,
    read_json,
)
from vla_policy_node.checkpoints.quantised import check_config
from vla_policy_node.checkpoints.reading import shown
from vla_policy_node.checkpoints.weights import Locate
from vla_policy_node.families.base import PolicyFamily, PolicyNetwork, kind_of
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.flops import LayerRows

__all__ = [
    'PolicyFamily', 'PolicyNetwork', 'available', 'config_of', 'count_flops', 'create_network',
    'locator', 'named', 'of', 'read_model_config', 'sequence_rows']

_DEFAULT = 'l1'  # of a config.json alone that names no head


def families_in(module: ModuleType) -> dict[str, PolicyFamily]:
    """Make the families that are defined in a file, by name."""
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type)
             and issubclass(kind, PolicyFamily) and kind.__module__ == module.__name__]
    return {kind.traits.name: kind() for kind in kinds if hasattr(kind, 'traits')}


_FAMILIES: dict[str, PolicyFamily] = {}
# In this order messages name OpenVLA-OFT first.
for _name in sorted((module.name for module in pkgutil.iter_modules(__path__)),
                    key=lambda name: (name.startswith('openvla'), name), reverse=True):
    _FAMILIES |= families_in(importlib.import_module(f'{__name__}.{_name}'))


def available() -> tuple[str, ...]:
    """Names of all families, as config.json has them under `head`."""
    return tuple(_FAMILIES)


def named(name: str) -> PolicyFamily:
    """Return the family of this name; ValueError if there is none."""
    if name not in _FAMILIES:
        raise ValueError(
            f'config.json names the head {shown(name)}; it must be one of {", ".join(_FAMILIES)}.')
    return _FAMILIES[name]


def of(config: ModelConfig) -> PolicyFamily:
    """Return the family that a policy of these sizes is of."""
    return named(config.family.name)


def config_of(document: Mapping) -> ModelConfig:
    """Turn a parsed `config.json` into sizes, without the files beside it."""
    return named(Entries(document, 'config.json').word('head', default=_DEFAULT)).config_of(
        document)


def read_model_config(directory: Path) -> ModelConfig:
    """Read `config.json` and recognise from the other files what it does not say.

    ValueError with one sentence for a directory that holds no policy which can run.
    """
    refuse_both(directory)
    check_config(read_json(directory, 'config.json'))
    document = read_document(directory)
    parts = {part for part in PARTS if part_files(directory, part)}
    if document.get('head'):
        family = named(Entries(document, 'config.json').word('head'))
    else:
        family = _recognise(directory, document, parts)
    return family.read_config(directory, document, parts)


def _recognise(directory: Path, document: Mapping, parts: Collection[str]) -> PolicyFamily:
    # One that goes by what is missing comes last.
    for family in sorted(_FAMILIES.values(), key=lambda family: bool(family.taken_for)):
        if family.recognises(directory, document, parts):
            return family
    kind = kind_of(document)
    raise ValueError(
        f'{directory} holds a policy of the kind {shown(kind)}, which no family here knows; there '
        f'are {", ".join(_FAMILIES)}, and config.json may name one of them under "head".')


def create_network(config: ModelConfig) -> PolicyNetwork:
    """Build the network with weights that are not initialised for any use."""
    return of(config).create_network(config)


def locator(config: ModelConfig) -> Locate:
    """Return what says where each tensor of the network lies in the files."""
    return partial(of(config).locate, config=config)


def count_flops(
    config: ModelConfig,
    layer_rows: Sequence[int] | Sequence[LayerRows],
    denoising_reused: int = 0,
) -> dict[str, int]:
    """FLOPs of one inference by stage; see `PolicyFamily.count_flops`."""
    return of(config).count_flops(config, layer_rows, denoising_reused)


def sequence_rows(config: ModelConfig, prompt_ids: int) -> int:
    """Rows of a sequence from which nothing was dropped; prompt_ids: how many, with BOS."""
    return of(config).sequence_rows(config, prompt_ids)
