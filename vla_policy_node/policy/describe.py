"""What a loaded policy says of itself, and of what its methods kept."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import tokenizers
import torch

from vla_policy_node import acceleration
from vla_policy_node.acceleration import Method
from vla_policy_node.checkpoints.fingerprint import fingerprint
from vla_policy_node.checkpoints.statistics import Statistics
from vla_policy_node.encoding.encoder import InputEncoder
from vla_policy_node.families import PolicyNetwork
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.policy.interface import (
    END_EFFECTOR_STATE,
    NORMALISED_ACTIONS,
    TOKEN_SELECTIONS,
    PolicyDescription,
    PolicySpec,
    TokenSelection,
)


def describe(
    directory: Path,
    config: ModelConfig,
    model: PolicyNetwork,
    inputs: InputEncoder,
    statistics: Statistics,
    methods: Sequence[Method],
    **chosen: object,
) -> PolicyDescription:
    """Describe a policy of these parts.

    config: sizes as the files have them, whatever methods left out of the network. chosen: fields
    that say how the policy was loaded.
    """
    names = [method.name for method in methods]
    least, most = statistics.proprio_seen.tolist()
    return PolicyDescription(
        spec=spec_with(config, methods),
        capabilities=(NORMALISED_ACTIONS, TOKEN_SELECTIONS),
        execution_modes=acceleration.execution_modes(names),
        checkpoint=str(directory),
        sha256=fingerprint(directory),
        trained=config.trained,
        architecture=config.architecture,
        parameters=sum(weight.numel() for weight in model.parameters()),
        versions=_versions(),
        prompt_template=inputs.prompt_template,
        statistics_key=statistics.key,
        camera_transforms=dict(inputs.camera_transforms),
        chunk_length=config.chunk_length,
        visual_tokens=config.visual_tokens,
        grid=config.grid,
        methods=tuple(names),
        action_range=(
            tuple(statistics.action_low.tolist()), tuple(statistics.action_high.tolist())),
        state_range=(tuple(least), tuple(most)),
        **chosen,  # type: ignore[arg-type]
    )


def spec_with(
    config: ModelConfig, methods: Iterable[Method | type[Method]]
) -> PolicySpec:
    """Return what a policy of these sizes takes and gives together with these methods."""
    if not config.spec.state and any(method.reads_state for method in methods):
        return replace(config.spec, state=END_EFFECTOR_STATE)
    return config.spec


def describe_selections(
    methods: Sequence[Method],
    description: PolicyDescription,
    inputs: InputEncoder,
    images: Mapping[str, np.ndarray],
) -> tuple[TokenSelection, ...]:
    """Combine the methods' reports: kept is what all kept, scores are the last ones given.

    images: of the observation; of a camera that is missing there is no selection.
    """
    cameras = inputs.seen(images)
    grid = (len(cameras), *description.grid)
    kept = np.ones(int(np.prod(grid)), bool)
    scores = np.empty(0, np.float32)
    for report in (method.report() for method in methods):
        if report is not None:
            kept = kept & report.kept
            scores = report.scores if report.scores.size else scores
    return tuple(
        TokenSelection(
            camera=camera,
            kept=kept.reshape(grid)[index],
            scores=scores.reshape(grid)[index] if scores.size else scores,
            crop=inputs.preprocessor.crop_of(*images[camera].shape[:2]),
            camera_transform=inputs.camera_transforms[camera],
        )
        for index, camera in enumerate(cameras)
    )


def _versions() -> dict[str, str]:
    return {
        'python': platform.python_version(),
        'torch': torch.__version__,
        'numpy': np.__version__,
        'tokenizers': tokenizers.__version__,
    }
