"""What goes into a policy and what comes out of it: plain values, for both of its sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

CAMERAS = ('third_person', 'wrist')
# none: the network as it was published. fused: its weights put together. graphs: also in fixed
# shapes, on a GPU as CUDA graphs. compiled: also through torch.compile, which takes minutes.
OPTIMISATIONS = ('none', 'fused', 'graphs', 'compiled')


@dataclass(frozen=True)
class Observation:
    """What the robot sees and is told at one instant.

    images: camera name -> [H, W, 3] uint8 RGB, upright, any size.
    proprio: [8] float64: end-effector position (m), axis-angle (rad), two finger positions (m).
    instruction: the task in plain words.
    """

    images: Mapping[str, np.ndarray]
    proprio: np.ndarray
    instruction: str


@dataclass(frozen=True)
class TokenSelection:
    """Which visual tokens of one camera the policy looked at.

    kept: [grid_h, grid_w] bool.
    scores: [grid_h, grid_w] float32 (LightVLA: number of votes), empty if nothing was scored.
    crop: x, y, width, height of the grid as fractions of the transformed camera image.
    camera_transform: 'none' | 'rotate_180' | 'mirror_horizontal', applied before the crop.
    """

    camera: str
    kept: np.ndarray
    scores: np.ndarray
    crop: tuple[float, float, float, float]
    camera_transform: str


@dataclass(frozen=True)
class ActionChunk:
    """The next K actions and how they came about.

    actions: [K, 7] float64, un-normalised, in the units of the training data
        (LIBERO: [-1, 1] per dimension, dimension 6 is the gripper, 1 open, 0 closed).
    stage_ms: wall time of 'preprocess' (pictures of the size the towers take), 'upload'
        (normalised, on the device), 'vision', 'select', 'language_model' and 'head' (actions);
        their sum is the whole inference. Where a method may answer instead of the network, its
        decision is the stage 'reuse'; where it did, no other stage follows.
    method: names of the acceleration methods joined by '+', 'dense' if there are none.
    tokens_kept: visual tokens that all layers computed anew, 0 if the network did not run.
    flops: arithmetic of this inference, counted as in `models.flops`.
    layers_run: layers of the language model that ran, 0 if it did not or if it does not tell.
    reused_by: the method that answered from past actions, '' if the network ran.
    """

    actions: np.ndarray
    selections: tuple[TokenSelection, ...]
    stage_ms: dict[str, float]
    method: str
    tokens_kept: int
    tokens_total: int
    flops: int = 0
    layers_run: int = 0
    layers_total: int = 0
    reused_by: str = ''


@dataclass(frozen=True)
class PolicyDescription:
    """Everything that identifies a loaded policy, for logs, status messages and reports.

    cameras: those it looks at. action_rows: see `models.openvla_oft.ACTION_ROWS`.
    action_range: 1st and 99th percentile of each action dimension in the training data.
    """

    checkpoint: str
    sha256: str
    trained: bool
    architecture: str
    parameters: int
    device: str
    dtype: str
    versions: Mapping[str, str]
    prompt_template: str
    statistics_key: str
    chunk_length: int
    action_dimension: int
    visual_tokens: int
    grid: tuple[int, int]
    methods: tuple[str, ...]
    method_settings: Mapping[str, Mapping[str, object]]
    cameras: tuple[str, ...] = CAMERAS
    action_rows: str = 'oft'
    action_range: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    preprocessing: str = 'exact'
    optimisation: str = 'none'


class NonFiniteActionError(ValueError):
    """The network answered with NaN or infinity; nothing of it may move a robot."""
