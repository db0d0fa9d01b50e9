"""The interface of every policy, its inputs and its outputs: plain values, numpy only.

A policy may run in this process, on another machine, or be a recording: its caller cannot tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

CAMERAS = ('third_person', 'wrist')
# none: the network as it was published. fused: its weights put together. graphs: also in fixed
# shapes, on a GPU as CUDA graphs. compiled: also through torch.compile, which takes minutes.
OPTIMISATIONS = ('none', 'fused', 'graphs', 'compiled')

# sync: a chunk is executed to its end before the next inference. async: the newest chunk wins.
# temporal_ensemble: what recent chunks say about the same instant is averaged.
EXECUTION_MODES = ('sync', 'async', 'temporal_ensemble')

# Far more than anybody says to a robot, and tokenised in a few milliseconds. What is longer is
# refused unread: a megabyte keeps a tokeniser busy for seconds.
MAX_INSTRUCTION_BYTES = 4096

# Capabilities of a policy. Its chunks carry `normalised` actions, or `selections` of tokens.
NORMALISED_ACTIONS, TOKEN_SELECTIONS = 'normalised_actions', 'token_selections'


def _no_actions() -> np.ndarray:
    return np.empty((0, 0))


@dataclass(frozen=True)
class Observation:
    """Pictures, state and instruction at one instant.

    images: camera name -> [H, W, 3] uint8 RGB, upright, any size.
    proprio: [P] float64, the numbers of `PolicySpec.state` in their order. By default end-effector
        position (m), axis-angle (rad), two finger positions (m).
    instruction: the task in plain words.
    """

    images: Mapping[str, np.ndarray]
    proprio: np.ndarray
    instruction: str


@dataclass(frozen=True, eq=False)
class Execution:
    """What becomes of the chunks of a policy, as an inference begins.

    Time is counted in control periods from the capture of the request's observation: element i
    of the answer is for period i. The default is a fresh start: nobody executes anything.

    mode: one of EXECUTION_MODES, '' for none.
    executed: [N, A] actions of the periods between the last chunk's observation and this one,
        in their order, in the units of `ActionChunk.actions`. Periods in which the robot was held
        are left out, and after an interruption the count begins anew.
    committed: [D, A] actions of the first `delay` periods: sent already, or due before an answer
        can be there. Fewer rows than `delay` where the robot will have nothing to do.
    leftover: [R, A] what the present chunk says of the periods from 0 on, normalised as the model
        gave it: row i and element i of the answer are for the same period, and the first `delay`
        rows cannot be changed any more. No rows without such a chunk.
    delay: periods, and so elements of the answer, that will have passed before it takes over: as
        many as lately at most, and no fewer than have passed already.
    """

    mode: str = ''
    executed: np.ndarray = field(default_factory=_no_actions)
    committed: np.ndarray = field(default_factory=_no_actions)
    leftover: np.ndarray = field(default_factory=_no_actions)
    delay: int = 0


@dataclass(frozen=True, eq=False)
class InferenceRequest:
    """An observation, and what execution knows; by itself an observation is a fresh start."""

    observation: Observation
    execution: Execution = field(default_factory=Execution)

    @classmethod
    def after(cls, observation: Observation, chunk: ActionChunk | None) -> InferenceRequest:
        """Return the request after a chunk that was executed to its end without delay."""
        if chunk is None:
            return cls(observation)
        return cls(observation, Execution('sync', executed=chunk.actions))


@dataclass(frozen=True)
class TokenSelection:
    """The visual tokens of one camera that the policy used.

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

    actions: [K, A] float64, un-normalised, in the units of the training data
        (LIBERO: [-1, 1] per dimension, dimension 6 is the gripper, 1 open, 0 closed).
    stage_ms: wall time of 'preprocess' (pictures of the size the vision encoders take), 'upload'
        (normalised, on the device), 'vision', 'select', 'language_model' and 'head' (actions);
        their sum is the whole inference. Where a method may answer instead of the network, its
        decision is the stage 'reuse'; where it did, there is no other stage.
    method: names of the acceleration methods joined by '+', 'dense' if there are none.
    tokens_kept: visual tokens that all layers computed anew, 0 if the network did not run.
    flops: arithmetic of this inference, counted as in `nn.flops`.
    layers_run: layers of the language model that ran, 0 if it did not or if it does not tell.
    reused_by: the method that answered from past actions, '' if the network ran.
    normalised: [K, A] float64, the actions as the model gave them; no rows if there is no model.
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
    normalised: np.ndarray = field(default_factory=_no_actions)


@dataclass(frozen=True)
class Quantity:
    """One number of a state or an action; unit '' is that of the training data."""

    name: str
    unit: str = ''


END_EFFECTOR_STATE = (
    *(Quantity(name, 'm') for name in ('x', 'y', 'z')),
    *(Quantity(name, 'rad') for name in ('rx', 'ry', 'rz')),
    *(Quantity(name, 'm') for name in ('left_finger', 'right_finger')),
)
END_EFFECTOR_DELTA = tuple(
    Quantity(name) for name in ('dx', 'dy', 'dz', 'drx', 'dry', 'drz', 'gripper'))


@dataclass(frozen=True)
class PolicySpec:
    """What goes into a policy and what comes out.

    cameras: those it looks at. state: the numbers of `Observation.proprio` that it reads, in
    order; none if it reads none. actions: the numbers of each element of a chunk.
    """

    cameras: tuple[str, ...] = CAMERAS
    state: tuple[Quantity, ...] = END_EFFECTOR_STATE
    actions: tuple[Quantity, ...] = END_EFFECTOR_DELTA

    @property
    def grippers(self) -> tuple[int, ...]:
        """Places of the actions that are called grippers."""
        return tuple(
            place for place, action in enumerate(self.actions) if 'gripper' in action.name)


@dataclass(frozen=True, kw_only=True)
class PolicyDescription:
    """Everything that identifies a policy, for logs, status messages and reports; plain data.

    spec: inputs and outputs. capabilities: see NORMALISED_ACTIONS and TOKEN_SELECTIONS.
    execution_modes: those in which its methods mean what they mean.
    instructions: the only ones that it knows, none if it takes any.
    control_period_s: of its training data, None if nobody says.
    checkpoint, sha256: where it comes from, and of which bytes; '' for no checkpoint.
    action_rows: see `families.prismatic.ACTION_ROWS`.
    camera_transforms: camera -> what turns its upright pictures into what training saw.
    action_range: 1st and 99th percentile of each action dimension in the training data, or least
        and largest, whichever the policy was trained with.
    state_range: least and largest of each number of the state in the training data, empty if
        nobody says.
    """

    architecture: str
    chunk_length: int
    spec: PolicySpec = PolicySpec()
    capabilities: tuple[str, ...] = ()
    execution_modes: tuple[str, ...] = EXECUTION_MODES
    instructions: tuple[str, ...] = ()
    control_period_s: float | None = None
    checkpoint: str = ''
    sha256: str = ''
    trained: bool = True
    parameters: int = 0
    device: str = 'cpu'
    dtype: str = 'float32'
    versions: Mapping[str, str] = field(default_factory=dict)
    prompt_template: str = ''
    statistics_key: str = ''
    visual_tokens: int = 0
    grid: tuple[int, int] = (0, 0)
    methods: tuple[str, ...] = ()
    method_settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    action_rows: str = ''
    action_range: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    state_range: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    preprocessing: str = 'exact'
    optimisation: str = 'none'
    camera_transforms: Mapping[str, str] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """Names of the acceleration methods joined by '+', 'dense' if there are none."""
        return '+'.join(self.methods) or 'dense'

    def check_mode(self, mode: str) -> None:
        """Raise ValueError with one sentence for an execution mode that does not fit."""
        if mode not in self.execution_modes:
            raise ValueError(
                f'The policy ({self.method}) takes it that chunks are executed as in '
                f"execution_mode {' or '.join(self.execution_modes)}; it is '{mode}'.")

    def to_dict(self) -> dict[str, object]:
        """Return the description as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PolicyDescription:
        """Return what `to_dict` described, also after a way through JSON."""
        spec = values['spec']
        quantities = {
            name: tuple(Quantity(**quantity) for quantity in spec[name])
            for name in ('state', 'actions')}
        ranges = {name: tuple(map(tuple, values[name]))
                  for name in ('action_range', 'state_range') if name in values}
        names = ('capabilities', 'execution_modes', 'instructions', 'methods', 'grid')
        fields: dict[str, Any] = {
            **values, **{name: tuple(values[name]) for name in names},
            'spec': PolicySpec(tuple(spec['cameras']), **quantities),
            **ranges,
        }
        return cls(**fields)


@runtime_checkable
class Policy(Protocol):
    """Answers observations with chunks of actions.

    Not thread-safe: one thread at a time calls `infer`, `warm_up`, `reset` and `close`; any may
    read `description`, which never changes, and call `check_instruction`.
    """

    @property
    def description(self) -> PolicyDescription:
        """What this policy is."""

    def infer(self, request: InferenceRequest) -> ActionChunk:
        """Predict the next chunk; ValueError with one sentence for an unusable observation.

        Nothing of one call reaches the next, except what a method keeps until `reset`.
        """

    def check_instruction(self, instruction: str) -> None:
        """Raise the ValueError with which `infer` would refuse the instruction."""

    def warm_up(self, instruction: str) -> None:
        """Get ready for instructions as long as this one, so that no call is slow for being first.

        ValueError for an unusable instruction.
        """

    def reset(self) -> None:
        """Begin a new episode or instruction: forget past steps."""

    def close(self) -> None:
        """Free the policy's resources; it cannot be used afterwards."""


class NonFiniteActionError(ValueError):
    """The network returned NaN or infinity; no part of the chunk may move a robot."""
