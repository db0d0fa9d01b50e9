"""Checks and completes the options of `LocalPolicy.load`; ValueError with one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vla_policy_node import acceleration, families
from vla_policy_node.acceleration import Method
from vla_policy_node.encoding.preprocess import TRANSFORMS
from vla_policy_node.families.prismatic import ACTION_ROWS
from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.policy.interface import OPTIMISATIONS

AUTO = 'auto'  # a transform: what the checkpoint implies


def complete_settings(
    methods: Sequence[str],
    chosen: Mapping[str, Mapping[str, object]],
    trained: Mapping[str, Mapping[str, object]],
) -> dict[str, dict[str, object]]:
    """Defaults, under what the checkpoint was trained with, under what was chosen."""
    for name in chosen.keys() - set(methods):
        raise ValueError(f'There are settings for the method {name!r}, which is not in use.')
    return {
        name: {**acceleration.settings(name), **trained.get(name, {}), **chosen.get(name, {})}
        for name in methods
    }


def choose_action_rows(asked: str, checkpoint: str, methods: Sequence[Method]) -> str:
    """The requested rows, else the checkpoint's, else those that a method prefers, else oft."""
    wishes = [method.action_rows for method in methods if method.action_rows]
    rows = asked or checkpoint or next(iter(wishes), 'oft')
    if rows not in ACTION_ROWS:
        raise ValueError(f'action_rows must be one of {", ".join(ACTION_ROWS)}, not {rows!r}.')
    return rows


def resize_chunk(config: ModelConfig, chunk_length: int) -> ModelConfig:
    """Let the policy answer with so many actions; ValueError if they leave a prompt no room."""
    if chunk_length < 1:
        raise ValueError(f'chunk_length must be 1 or more, not {chunk_length}.')
    config = families.of(config).with_chunk_length(config, chunk_length)
    rows, room = config.visual_tokens + config.other_rows, config.language_model.context_length
    if rows >= room:
        raise ValueError(
            f'chunk_length {chunk_length} leaves no room for a prompt: images and actions make '
            f'{rows} sequence rows, the policy takes {room}.')
    return config


def check_optimisation(
    optimisation: str, config: ModelConfig, device: str, dtype: str
) -> None:
    """Refuse an optimisation that does not exist or that the policy cannot run with."""
    if optimisation not in OPTIMISATIONS:
        raise ValueError(
            f'optimisation must be one of {", ".join(OPTIMISATIONS)}, not {optimisation!r}.'
        )
    if optimisation != 'none' and not config.can(Capability.FUSED):
        raise ValueError("A policy of this family runs with optimisation 'none'.")
    if optimisation in ('graphs', 'compiled') and not config.can(Capability.FIXED_SHAPES):
        raise ValueError(
            f'Fixed shapes are not for the {config.family.name} head; '
            "choose optimisation 'none' or 'fused'.")
    if optimisation == 'compiled' and dtype == 'int8' and device.startswith('cpu'):
        # What torch 2.13 makes of it answers differently each time, or ends the process.
        raise ValueError(
            'Weights of 8 bit integers cannot be compiled on the CPU; choose optimisation '
            "'graphs', or dtype float32.")


def complete_transforms(
    chosen: Mapping[str, str], cameras: Sequence[str], implied: Mapping[str, str]
) -> dict[str, str]:
    """One of every camera that the policy looks at: what was chosen, else implied, else 'none'.

    implied: camera -> what the checkpoint needs, if anything says so. Robots may have other
    cameras, which are passed over where all of the policy's are named, or nothing is asked.
    """
    for camera, transform in chosen.items():
        if transform != AUTO and camera not in cameras and not chosen.keys() >= {*cameras}:
            raise ValueError(f'There is no camera {camera!r}; choose from {", ".join(cameras)}.')
        if transform not in (*TRANSFORMS, AUTO):
            raise ValueError(
                f'Camera {camera!r} cannot be transformed by {transform!r}; choose from '
                f'{", ".join((*TRANSFORMS, AUTO))}.'
            )
    decided = {**implied, **{camera: transform for camera, transform in chosen.items()
                             if transform != AUTO}}
    return {camera: decided.get(camera, 'none') for camera in cameras}
