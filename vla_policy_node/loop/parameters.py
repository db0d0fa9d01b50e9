"""All parameters of the policy node, and the components built from them. Without ROS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vla_policy_node.common.plain_yaml import parse_plain_yaml
from vla_policy_node.contract import RobotContract, find_contract
from vla_policy_node.contract.fit import check_fits
from vla_policy_node.contract.joints import is_moved_by_joints, joint_spec, joint_streams
from vla_policy_node.control.action_spec import (
    ROTATION_FORMS,
    ActionSpec,
    GripperLatch,
    check_chunk_length,
)
from vla_policy_node.control.cameras import CameraWatch
from vla_policy_node.control.commander import CommanderParts
from vla_policy_node.control.end_effector import EndEffectorMover
from vla_policy_node.control.ensemble import WEIGHTINGS, EnsembleSettings
from vla_policy_node.control.executors import EXECUTION_MODES, create_executor
from vla_policy_node.control.joint_motion import JointTracking
from vla_policy_node.control.joint_mover import JointMover
from vla_policy_node.control.joint_spec import JointSpec
from vla_policy_node.control.limits import CommandLimiter, Limits
from vla_policy_node.control.motion import MotionLimits
from vla_policy_node.control.mover import Mover
from vla_policy_node.control.pairing import ObservationPairer
from vla_policy_node.loop.contract_fields import (
    check_agreement,
    for_robot,
    reference_name,
    same_for,
    transform_name,
)
from vla_policy_node.loop.parameter_fields import changed_parts, check_values, parameter
from vla_policy_node.policy import load_policy, read_spec
from vla_policy_node.wire.images import read_reference
from vla_policy_node.wire.streams import InputStreams

if TYPE_CHECKING:
    from vla_policy_node.policy.interface import Policy, PolicySpec


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


@dataclass(frozen=True)
@for_robot(find_contract(''), '', transforms_after='contract', reference_after='freeze_timeout_s')
class PolicyParameters:
    """Parameters of the node `policy`; those marked tunable may change while it runs.

    The `part` of a tunable one is the field of `CommanderParts` that is made anew when it
    changes; one without a part is looked up when it is needed.
    This class is for the default contract; `of` returns that of another one.
    """

    robot: ClassVar[RobotContract]
    contract_name: ClassVar[str]

    # --- model ---
    checkpoint: str = parameter(
        '', 'Checkpoint: a directory in the public OpenVLA-OFT layout, or an id of the Hugging '
        'Face hub, which is downloaded.')
    methods: tuple = parameter(
        ['lightvla'], "Acceleration methods in order; ['dense'] for none.")
    method_settings: tuple = parameter(
        [''], "Settings as 'method.setting=value', for example 'lightvla.multiplicity_bias=true'.")
    action_rows: str = parameter(
        'auto', 'Rows the action head reads; auto: what checkpoint and methods expect.',
        choices=('auto', 'oft', 'last56'))
    chunk_length: int = parameter(
        0, 'Actions per inference; 0: what the checkpoint says, else 8.', '', 0, 100)
    statistics_key: str = parameter(
        '', 'Data set to un-normalise with; may be empty if the checkpoint has only one.')
    device: str = parameter('cpu', "Torch device, for example 'cpu' or 'cuda:0'.")
    dtype: str = parameter(
        'float32', 'Arithmetic of the networks; int8 and int4 are bfloat16 with smaller weights, '
        'float8 is for recent GPUs.',
        choices=('float32', 'bfloat16', 'int8', 'int4', 'float8'))
    optimisation: str = parameter(
        'none', 'none: as published. fused: weights put together. graphs: also fixed shapes, on a '
        'GPU as CUDA graphs. compiled: also torch.compile, seconds wherever it is first. '
        'All but none change actions by rounding.',
        choices=('none', 'fused', 'graphs', 'compiled'))
    preprocessing: str = parameter(
        'exact', 'exact: pictures as in the evaluation of the checkpoint. fast: crop and resize '
        'in one pass, no JPEG round trip.', choices=('exact', 'fast'))
    threads: int = parameter(
        0, 'CPU threads torch may use; 0: all but the one that commands and subscriptions need.',
        '', 0, 1024)
    warmup_inferences: int = parameter(
        2, 'Inferences on grey images at configure; not in any statistics.', '', 1, 100)
    warmup_instructions: tuple = parameter(
        [''], 'Get ready for instructions as long as these at configure, so that with graphs on a '
        'GPU, or compiled, no inference is slow for being the first of its kind.')
    contract: str = parameter(
        '', 'The robot: a contract (.yaml), or the name of one that comes with the package; '
        'empty: end_effector.')
    # Here: the transform of each camera of the contract.

    # --- inputs ---
    compressed: bool = parameter(
        False, "Subscribe sensor_msgs/CompressedImage on '<topic>/compressed'.")
    max_age_s: float = parameter(
        0.3, 'Largest age of any input, from capture stamp to now.', 's', 0.001, 10.0,
        tunable=True, part='pairer')
    max_spread_s: float = parameter(
        0.04, 'Largest difference between the capture stamps of the cameras.', 's', 0.0, 1.0,
        tunable=True, part='pairer')
    state_tolerance_s: float = parameter(
        0.05, 'Largest difference between a state and the first camera.', 's', 0.0, 1.0,
        tunable=True, part='pairer')
    future_tolerance_s: float = parameter(
        0.1, 'How far a stamp may lie in the future before the clocks disagree.', 's', 0.0, 10.0,
        tunable=True, part='pairer')
    freeze_timeout_s: float = parameter(
        0.5, 'A camera whose stamps go on for this long while its picture stays the same is '
        'frozen; 0: do not look. The noise of a real camera changes every picture of a still '
        'scene; a simulator draws the same one again.', 's', 0.0, 60.0,
        tunable=True, part='cameras')
    # Here: the reference of its first camera.
    input_timeout_s: float = parameter(
        2.0, 'Bad inputs for this long end the goal, and moving needs a new one; '
        '0: hold, and go on when they are good again.', 's', 0.0, 3600.0,
        tunable=True, part='input_timeout_ns')

    # --- execution ---
    control_rate_hz: float = parameter(
        20.0, 'Rate of commands; one chunk element per period.', 'Hz', 1.0, 200.0)
    pacing: str = parameter(
        'timer', 'timer: a command each control period. observation: one command per observation, '
        'after its inference, for lock-step simulation.', choices=('timer', 'observation'))
    inference_timeout_s: float = parameter(
        5.0, 'An inference that takes longer (wall time) ends the goal; no other begins before it '
        'has ended.', 's', 0.1, 3600.0)
    clock_timeout_s: float = parameter(
        0.0, 'Hold when simulated time does not reach the next control period for so long (wall '
        'time); 0: one and a half control periods.', 's', 0.0, 60.0)
    execution_mode: str = parameter(
        'async', 'sync: play a chunk to its end, then infer. async: infer all the time, newest '
        'chunk wins. temporal_ensemble: average what recent chunks say.',
        choices=EXECUTION_MODES, tunable=True, part='executor')
    ensemble_weighting: str = parameter(
        'act', 'act: exp(-m i), oldest first (ACT). adaptive: exp(a cos) to the newest (CogACT). '
        'cogact: the same with the gripper, as published.', choices=WEIGHTINGS,
        tunable=True, part='executor')
    ensemble_decay: float = parameter(
        0.01, 'm of the act weights; above 0 favours old chunks.', '', -10.0, 10.0,
        tunable=True, part='executor')
    ensemble_alpha: float = parameter(
        0.1, 'a of the adaptive weights.', '', 0.0, 100.0, tunable=True, part='executor')
    ensemble_horizon: int = parameter(
        8, 'Chunks averaged at most.', '', 1, 64, tunable=True, part='executor')
    default_duration_s: float = parameter(
        60.0, 'Duration of a goal that does not say.', 's', 0.1, 86400.0, tunable=True)

    # --- action specification: what the numbers of the policy mean on this robot ---
    frame_id: str = parameter('base_link', 'Frame of the commanded deltas.')
    rotation_form: str = parameter(
        'axis_angle', "Rotation of the policy's actions.", choices=ROTATION_FORMS)
    translation_scale_m: float = parameter(
        0.05, 'Metres per action unit.', 'm', 1e-6, 10.0)
    rotation_scale_rad: float = parameter(
        0.5, 'Radians per action unit.', 'rad', 1e-6, 10.0)
    gripper_open: float = parameter(1.0, 'Action value that means open.', '', -1e3, 1e3)
    gripper_closed: float = parameter(0.0, 'Action value that means closed.', '', -1e3, 1e3)
    gripper_threshold: float = parameter(
        0.5, 'Opening above which the gripper is told to open.', '', 0.0, 1.0,
        tunable=True, part='mover')
    gripper_dead_band: float = parameter(
        0.2, 'Width of the band round the threshold in which nothing changes.', '', 0.0, 1.0,
        tunable=True, part='mover')

    # --- limits, on by default ---
    max_step_translation_m: float = parameter(
        0.0125, 'Largest translation per control period.', 'm', 1e-6, 1.0,
        tunable=True, part='mover')
    max_step_rotation_rad: float = parameter(
        0.025, 'Largest rotation per control period.', 'rad', 1e-6, 3.2,
        tunable=True, part='mover')
    max_linear_velocity_m_s: float = parameter(
        0.25, 'Largest linear velocity.', 'm/s', 1e-6, 10.0, tunable=True, part='mover')
    max_angular_velocity_rad_s: float = parameter(
        0.5, 'Largest angular velocity.', 'rad/s', 1e-6, 50.0, tunable=True, part='mover')
    max_linear_acceleration_m_s2: float = parameter(
        1.0, 'Largest linear acceleration.', 'm/s^2', 1e-6, 1e3, tunable=True, part='mover')
    max_angular_acceleration_rad_s2: float = parameter(
        2.0, 'Largest angular acceleration.', 'rad/s^2', 1e-6, 1e4, tunable=True, part='mover')
    workspace_min_m: tuple = parameter(
        [0.0, 0.0, 0.0], 'Smallest x, y, z of the end effector in frame_id; all zeros here and in '
        'workspace_max_m: not set.', 'm', -100.0, 100.0, tunable=True, part='mover')
    workspace_max_m: tuple = parameter(
        [0.0, 0.0, 0.0], 'Largest x, y, z of the end effector in frame_id.', 'm', -100.0, 100.0,
        tunable=True, part='mover')
    default_workspace_half_m: float = parameter(
        0.15, 'Without a workspace, how far the end effector may go to each side of where it was '
        'when the goal began.', 'm', 0.001, 1.0)
    max_tracking_error_m: float = parameter(
        0.15, 'Largest difference between the commanded and the measured displacement within '
        'tracking_window_s; more is a hold until the next goal. 0: do not compare, for poses that '
        'the commands do not move.', 'm', 0.0, 100.0)
    tracking_window_s: float = parameter(
        2.0, 'Time over which commanded and measured motion are compared.', 's', 0.1, 20.0)
    tracking_gain: float = parameter(
        1.0, 'Share of a commanded displacement that the arm makes; below 1 for a compliant '
        'controller.', '', 0.01, 1.0)
    tracking_delay_s: float = parameter(
        0.1, 'How late the arm may carry out a command, or a pose may be stamped wrong; in the '
        'workspace such commands count as done or as under way, whichever is worse.', 's', 0.0,
        1.0)

    # --- start and outputs ---
    autostart: bool = parameter(
        False, 'Configure and activate at start, without a lifecycle manager.')
    state_directory: str = parameter(
        '', 'Where a latched emergency stop is recorded, so that it survives a restart of the '
        'node; empty: $XDG_STATE_HOME/vla_policy_node, usually ~/.local/state/vla_policy_node.')
    publish_twist: bool = parameter(
        False, 'Also publish geometry_msgs/TwistStamped for MoveIt Servo (speed units).')
    status_rate_hz: float = parameter(
        5.0, 'Rate of status messages; diagnostics come once a second.', 'Hz', 0.1, 50.0)
    latency_window: int = parameter(
        200, 'Inferences in the latency statistics.', '', 1, 100000)
    shadow_every: int = parameter(
        0, 'Once in so many inferences also run the policy without methods, beside the work, and '
        'say in /diagnostics what they change; 0: never.', '', 0, 100000)

    def __post_init__(self) -> None:
        """Build the tunable parts once, so that a bad combination is refused here."""
        if self.contract != self.contract_name:
            raise ValueError(
                f"contract is '{self.contract}', but the node was started with "
                f"'{self.contract_name}'; start it again with the other one.")
        if self.state_directory[:1] not in ('', '/', '~'):
            raise ValueError(
                f"state_directory is '{self.state_directory[:200]}'; begin it with '/' or '~', or "
                'the record of a stop would be sought where the node happens to be started.')
        if self.contract_name:
            check_agreement(self.robot, self)
        self.make_parts(references={})
        self.action_spec()
        self.settings_by_method()

    def __reduce__(self):
        # Workers know the class of the default contract only.
        return _remade, (self.contract, {f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def of(cls, contract: str) -> type[PolicyParameters]:
        """Return the class for a robot, by what the parameter `contract` says.

        Its defaults are what the contract says. Raises ContractError.
        """
        made: Any = cls
        return same_for(made, find_contract(contract), contract)

    @classmethod
    def from_values(cls, values: Mapping[str, object]) -> PolicyParameters:
        """Return the parameters of a file's section. Raises ValueError for what cannot be used."""
        cls = cls.of(str(values.get('contract', '')))
        known = {field.name for field in fields(cls)}
        if unknown := sorted(values.keys() - known - {'use_sim_time'}):
            raise ValueError(f'The policy node has no parameter {", ".join(unknown)}.')
        check_values(cls, values)
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items() if name in known}
        return cls(**given)

    def load_policy(self, threads: int, **instead: object) -> Policy:
        """Load the checkpoint with its methods; threads of torch, 0 to leave them alone.

        instead: arguments of `LocalPolicy.load` that override those of the parameters.
        Raises ValueError with one sentence if anything does not fit.
        """
        policy = load_policy(**{
            'checkpoint': self.checkpoint,
            'methods': self.method_names,
            'device': self.device,
            'dtype': self.dtype,
            'statistics_key': self.statistics_key,
            'camera_transforms': self.camera_transforms,
            'threads': threads,
            'method_settings': self.settings_by_method(),
            'action_rows': '' if self.action_rows == 'auto' else self.action_rows,
            'chunk_length': self.chunk_length,
            'preprocessing': self.preprocessing,
            'optimisation': self.optimisation,
            'execution_mode': self.execution_mode,
            **instead,
        })
        check_chunk_length(policy.description.chunk_length)
        check_fits(policy.description.spec, self.robot)
        return policy

    def read_spec(self) -> PolicySpec:
        """Return what the policy will need, before it is loaded. Raises ValueError."""
        spec = read_spec(self.checkpoint, self.method_names)
        check_fits(spec, self.robot)
        return spec

    @property
    def period_ns(self) -> int:
        """Control period."""
        return _ns(1.0 / self.control_rate_hz)

    @property
    def method_names(self) -> tuple[str, ...]:
        """Acceleration methods; `dense` is the absence of one."""
        return tuple(name for name in self.methods if name not in ('', 'dense'))

    @property
    def camera_transforms(self) -> dict[str, str]:
        """Transform of each camera's picture."""
        return {camera: getattr(self, transform_name(camera))
                for camera in self.robot.camera_names}

    @property
    def streams(self) -> InputStreams:
        """What the node listens to."""
        return InputStreams(self.robot, self.compressed)

    def settings_by_method(self) -> dict[str, dict[str, object]]:
        """Parse method_settings. Raises ValueError for an entry of another form."""
        settings: dict[str, dict[str, object]] = {}
        for entry in filter(None, self.method_settings):
            key, equals, value = entry.partition('=')
            method, dot, name = key.strip().partition('.')
            if not (equals and dot and method and name):
                raise ValueError(
                    f"method_settings has '{entry}'; write it as 'method.setting=value'."
                )
            settings.setdefault(method, {})[name] = parse_plain_yaml(
                value, f'The value of {method}.{name} in method_settings')
        return settings

    def read_references(self) -> dict[str, np.ndarray]:
        """Return the reference views, as `CameraWatch` takes them. Raises ValueError."""
        camera = self.robot.camera_names[0]
        path = getattr(self, reference_name(camera))
        return {camera: read_reference(path)} if path else {}

    def action_spec(self) -> ActionSpec | JointSpec:
        """Return what the policy's actions mean. Raises ValueError."""
        return self.joint_spec or self.end_effector_spec()

    @property
    def joint_spec(self) -> JointSpec | None:
        """The joints of a robot that is moved by them, None for an end effector."""
        return joint_spec(self.robot) if is_moved_by_joints(self.robot) else None

    def end_effector_spec(self) -> ActionSpec:
        """Return what the actions for an end effector mean. Raises ValueError."""
        return ActionSpec(
            self.frame_id, self.rotation_form, self.translation_scale_m, self.rotation_scale_rad,
            self.gripper_open, self.gripper_closed,
        )

    @property
    def has_workspace(self) -> bool:
        """Whether a workspace was set, rather than left to where goals begin."""
        return self._limits().has_workspace

    def _limits(self) -> Limits:
        return Limits(
            self.max_step_translation_m, self.max_step_rotation_rad,
            self.max_linear_velocity_m_s, self.max_angular_velocity_rad_s,
            self.max_linear_acceleration_m_s2, self.max_angular_acceleration_rad_s2,
            self.workspace_min_m, self.workspace_max_m, self.default_workspace_half_m,
        )

    def make_parts(
        self, references: Mapping[str, np.ndarray] | None = None,
        streams: InputStreams | None = None,
        end_effector: type[EndEffectorMover] = EndEffectorMover,
    ) -> CommanderParts:
        """Make everything the tunable parameters decide. Raises ValueError.

        references: what `read_references` returned before, so that no file is read again.
        streams: those that a policy needs; None: all of the robot. end_effector: what bounds the
            commands of one.
        """
        if references is None:
            references = self.read_references()
        streams = streams or self.streams
        ensemble = EnsembleSettings(
            self.ensemble_weighting, self.ensemble_decay, self.ensemble_alpha,
            self.ensemble_horizon,
        )
        return CommanderParts(
            ObservationPairer(
                streams.cameras, tuple(streams.states), _ns(self.max_spread_s),
                _ns(self.max_age_s), _ns(self.future_tolerance_s),
                state_tolerance_ns=_ns(self.state_tolerance_s),
            ),
            CameraWatch(streams.cameras, _ns(self.freeze_timeout_s), references),
            create_executor(
                self.execution_mode, self.period_ns, ensemble, self.action_spec().layout),
            self._make_mover(streams.pose, end_effector),
            _ns(self.input_timeout_s),
        )

    def retuned(
        self, parts: CommanderParts, former: PolicyParameters,
        references: Mapping[str, np.ndarray] | None = None, streams: InputStreams | None = None,
    ) -> CommanderParts:
        """Return the parts of `former` with those made anew that other parameters change.

        references, streams: as of `make_parts`.
        """
        fresh = self.make_parts(references, streams)
        return replace(parts, **{
            name: getattr(fresh, name) for name in changed_parts(former, self)})

    def _make_mover(self, pose: str, end_effector: type[EndEffectorMover]) -> Mover:
        period_s, window_ns = self.period_ns / 1e9, _ns(self.tracking_window_s)
        delay_ns = _ns(self.tracking_delay_s)
        if spec := self.joint_spec:
            return JointMover(
                spec, period_s, joint_streams(self.robot), JointTracking(window_ns, delay_ns))
        return end_effector(
            self.end_effector_spec(), CommandLimiter(self._limits(), period_s),
            GripperLatch(self.gripper_threshold, self.gripper_dead_band),
            MotionLimits(self.max_tracking_error_m, window_ns, self.tracking_gain, delay_ns),
            pose)


def _remade(contract: str, values: dict[str, Any]) -> PolicyParameters:
    return PolicyParameters.of(contract)(**values)
