"""Converts dataclasses of the core to messages. Pure functions, any thread."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from geometry_msgs.msg import TwistStamped
from std_msgs.msg import Header

from vla_msgs.msg import ActionSpecification, EndEffectorCommand, PolicyInfo
from vla_msgs.msg import TokenSelection as TokenSelectionMessage
from vla_policy_node.contract import RobotContract, to_yaml
from vla_policy_node.control.action_spec import ActionSpec
from vla_policy_node.control.joint_spec import JointSpec
from vla_policy_node.nodes.message_classes import message_class
from vla_policy_node.policy.interface import ActionChunk, PolicyDescription, TokenSelection
from vla_policy_node.wire.build import MessageBuilder
from vla_policy_node.wire.build import to_ns as to_ns
from vla_policy_node.wire.cdr import MessageHeader

_NS = 1_000_000_000
# Suffix of the shadow's entry in /diagnostics, after the node's name.
SHADOW_ENTRY = ': shadow'

_builder = MessageBuilder(message_class, np.ndarray.tolist)
to_time, to_hold = _builder.time, _builder.hold
to_command, to_joint_command = _builder.command, _builder.joint_command
to_chunk = _builder.chunk


def to_header(header: MessageHeader) -> Header:
    """Return the header of a message that was read from its bytes."""
    return _builder.header(header.stamp_ns, header.frame_id)


def to_twist(command: EndEffectorCommand, period_s: float) -> TwistStamped:
    """Return a command as the velocity that MoveIt Servo takes (`speed_units`, m/s and rad/s)."""
    twist = TwistStamped(header=command.header)
    for target, delta in ((twist.twist.linear, command.translation),
                          (twist.twist.angular, command.rotation)):
        target.x, target.y, target.z = (v / period_s for v in (delta.x, delta.y, delta.z))
    return twist


def to_selection(
    selection: TokenSelection, chunk: ActionChunk, header: Header, instruction: str
) -> TokenSelectionMessage:
    """Return the kept tokens of one camera; header is that camera's picture's."""
    height, width = selection.kept.shape
    x, y, crop_width, crop_height = selection.crop
    return TokenSelectionMessage(
        header=header,
        camera=selection.camera,
        method=chunk.method,
        grid_height=height,
        grid_width=width,
        kept=selection.kept.ravel().tolist(),
        scores=selection.scores.ravel().tolist(),
        kept_count=int(selection.kept.sum()),
        total_count=selection.kept.size,
        crop_x=x, crop_y=y, crop_width=crop_width, crop_height=crop_height,
        camera_transform=selection.camera_transform,
        inference_ms=float(sum(chunk.stage_ms.values())),
        instruction=instruction,
    )


def to_info(
    description: PolicyDescription,
    spec: ActionSpec | JointSpec,
    execution_mode: str,
    camera_transforms: Mapping[str, str],
    robot: RobotContract,
    period_ns: int,
    now_ns: int,
) -> PolicyInfo:
    """Return the latched self-description.

    camera_transforms: of every camera of the robot; the policy knows better of those it looks at.
    """
    settings = [f'{method}.{name}={value}' for method, chosen in
                description.method_settings.items() for name, value in chosen.items()]
    return PolicyInfo(
        header=Header(stamp=to_time(now_ns)),
        checkpoint=description.checkpoint,
        checkpoint_sha256=description.sha256,
        trained=description.trained,
        architecture=description.architecture,
        parameters=description.parameters,
        device=description.device,
        dtype=description.dtype,
        versions=[f'{name}=={version}' for name, version in description.versions.items()],
        prompt_template=description.prompt_template,
        statistics_key=description.statistics_key,
        chunk_length=description.chunk_length,
        visual_tokens=description.visual_tokens,
        methods=list(description.methods),
        method_settings=settings,
        execution_mode=execution_mode,
        camera_transforms=[
            description.camera_transforms.get(camera) or camera_transforms[camera]
            for camera in robot.camera_names],
        control_period_s=period_ns / _NS,
        action=_to_specification(spec),
        optimisation=description.optimisation,
        preprocessing=description.preprocessing,
        cameras=list(robot.camera_names),
        contract=to_yaml(robot),
    )


def _to_specification(spec: ActionSpec | JointSpec) -> ActionSpecification:
    if isinstance(spec, JointSpec):  # its contract says the rest
        return ActionSpecification(
            names=list(spec.names), units=[joint.unit for joint in spec.joints])
    return ActionSpecification(
        names=list(spec.names), units=list(spec.units), frame_id=spec.frame_id,
        rotation_form=spec.rotation_form, translation_scale_m=spec.translation_scale_m,
        rotation_scale_rad=spec.rotation_scale_rad, gripper_open=spec.gripper_open,
        gripper_closed=spec.gripper_closed)


def finite_or_zero(value: float) -> float:
    """Return the value, or 0.0 for NaN, which an empty statistic is in a status message."""
    return float(value) if math.isfinite(value) else 0.0
