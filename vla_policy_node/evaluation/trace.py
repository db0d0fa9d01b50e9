"""Records the kept tokens of every inference of an episode in a few kilobytes.

One npz per episode and method, N inferences, C cameras:

    kept        [N, C, grid_h, grid_w] bool
    on_parts    [N, P, C, grid_h, grid_w] bool, tokens that lie on `parts`
    parts       [P] str
    step        [N] int32, control steps before the inference
    phase       [N] int8, index into `phases`
    phases      [4] str
    actions     [N, K, 7] float32, un-normalised, before limits
    success     [] bool; instruction, method [] str; task_id, episode [] int32
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vla_policy_node.evaluation.grounding import PARTS
from vla_policy_node.evaluation.progress import PHASES
from vla_policy_node.outputs.files import draft

if TYPE_CHECKING:
    from vla_policy_node.evaluation.episodes import EpisodeResult
    from vla_policy_node.policy.interface import ActionChunk


def kept_of(chunk: ActionChunk) -> np.ndarray:
    """Return the kept tokens of all cameras, [C, grid_h, grid_w] bool."""
    return np.stack([selection.kept for selection in chunk.selections])


def trace_path(directory: Path, method: str, task_id: int, episode: int) -> Path:
    """Return where the trace of an episode is."""
    name = re.sub(r'[^\w.=+-]+', '_', method)
    return directory / f'task{task_id:02d}-episode{episode:02d}-{name}.npz'


def write_trace(directory: Path, row: Mapping, result: EpisodeResult) -> Path:
    """Write the trace of an episode whose inferences were grounded; row: its row of results.

    The name must have been claimed.
    """
    path = trace_path(directory, row['method'], row['task_id'], row['episode'])
    inferences = result.inferences
    arrays = dict(
        kept=np.stack([kept_of(i.chunk) for i in inferences]),
        on_parts=np.stack([np.stack([i.on_parts[part] for part in PARTS]) for i in inferences]),
        parts=np.array(PARTS),
        step=np.array([i.step for i in inferences], np.int32),
        phase=np.array([PHASES.index(i.phase) for i in inferences], np.int8),
        phases=np.array(PHASES),
        actions=np.stack([i.chunk.actions for i in inferences]).astype(np.float32),
        success=np.array(result.success),
        instruction=np.array(row['instruction']),
        method=np.array(row['method']),
        task_id=np.array(row['task_id'], np.int32),
        episode=np.array(row['episode'], np.int32),
    )
    with draft(path) as partial, partial.open('wb') as stream:
        np.savez_compressed(stream, **arrays)
    return path
