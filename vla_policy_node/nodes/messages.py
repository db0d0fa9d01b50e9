"""Dataclasses of the core to messages. Pure functions, any thread."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import TwistStamped, Vector3
from std_msgs.msg import Header

from vla_msgs.msg import (
    ActionChunk,
    ActionSpecification,
    EndEffectorCommand,
    HoldReason,
    PolicyInfo,
    TokenSelection,
)
from vla_policy_node.control.action_spec import ActionSpec
from vla_policy_node.control.commander import Command
from vla_policy_node.control.hold import Hold
from vla_policy_node.control.hold import HoldReason as HoldCode

if TYPE_CHECKING:  # the world shares these functions and needs no torch
    from vla_policy_node.policy import local as core

_NS = 1_000_000_000
# How the name of the shadow's entry in /diagnostics ends, after the node's.
SHADOW_ENTRY = ': shadow'


def to_time(ns: int) -> Time:
    """Return nanoseconds as a message; negative times become zero."""
    sec, nanosec = divmod(max(ns, 0), _NS)
    return Time(sec=sec, nanosec=nanosec)


def to_ns(time: Time) -> int:
    """Return a time message (or a duration message) in nanoseconds."""
    return time.sec * _NS + time.nanosec


def to_hold(hold: Hold) -> HoldReason:
    """Return a hold reason with its sentence."""
    return HoldReason(code=int(hold.code), stream=hold.stream, text=hold.text)


def to_command(command: Command, now_ns: int, frame_id: str) -> EndEffectorCommand:
    """Return the command, stamped with the time of publication."""
    return EndEffectorCommand(
        header=Header(stamp=to_time(now_ns), frame_id=frame_id),
        translation=_vector(command.delta.translation_m),
        rotation=_vector(command.delta.rotation_rad),
        gripper=command.delta.gripper,
        hold=command.hold.code is not HoldCode.NONE,
        hold_reason=to_hold(command.hold),
        observation_stamp=to_time(command.observation_stamp_ns),
        target_time=to_time(command.target_time_ns),
        chunk_step=command.chunk_step,
        disagreement=command.disagreement,
        epoch=command.epoch,
        limited=bool(command.rules),
    )


def to_twist(command: EndEffectorCommand, period_s: float) -> TwistStamped:
    """Return a command as the velocity that MoveIt Servo takes (`speed_units`, m/s and rad/s)."""
    twist = TwistStamped(header=command.header)
    for target, delta in ((twist.twist.linear, command.translation),
                          (twist.twist.angular, command.rotation)):
        target.x, target.y, target.z = (v / period_s for v in (delta.x, delta.y, delta.z))
    return twist


def to_chunk(
    chunk: core.ActionChunk,
    header: Header,
    instruction: str,
    sequence: int,
    epoch: int,
    period_ns: int,
    observation_age_ns: int,
    spread_ns: int,
) -> ActionChunk:
    """Return the result of one inference; header is the third-person picture's."""
    length, dimension = chunk.actions.shape
    return ActionChunk(
        header=header,
        instruction=instruction,
        sequence=sequence,
        epoch=epoch,
        chunk_length=length,
        action_dimension=dimension,
        actions=chunk.actions.ravel().tolist(),
        period_s=period_ns / _NS,
        stage_names=list(chunk.stage_ms),
        stage_ms=[float(ms) for ms in chunk.stage_ms.values()],
        inference_ms=float(sum(chunk.stage_ms.values())),
        observation_age_ms=observation_age_ns / 1e6,
        camera_spread_ms=spread_ns / 1e6,
        tokens_kept=chunk.tokens_kept,
        tokens_total=chunk.tokens_total,
        layers_run=chunk.layers_run,
        layers_total=chunk.layers_total,
        reused_by=chunk.reused_by,
        method=chunk.method,
    )


def to_selection(
    selection: core.TokenSelection, chunk: core.ActionChunk, header: Header, instruction: str
) -> TokenSelection:
    """Return the kept tokens of one camera; header is that camera's picture's."""
    height, width = selection.kept.shape
    x, y, crop_width, crop_height = selection.crop
    return TokenSelection(
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
    description: core.PolicyDescription,
    spec: ActionSpec,
    execution_mode: str,
    camera_transforms: Mapping[str, str],
    period_ns: int,
    now_ns: int,
) -> PolicyInfo:
    """Return the latched self-description; camera_transforms: third_person first, then wrist."""
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
        camera_transforms=list(camera_transforms.values()),
        control_period_s=period_ns / _NS,
        action=ActionSpecification(
            names=list(spec.names),
            units=list(spec.units),
            frame_id=spec.frame_id,
            rotation_form=spec.rotation_form,
            translation_scale_m=spec.translation_scale_m,
            rotation_scale_rad=spec.rotation_scale_rad,
            gripper_open=spec.gripper_open,
            gripper_closed=spec.gripper_closed,
        ),
        optimisation=description.optimisation,
        preprocessing=description.preprocessing,
    )


def finite_or_zero(value: float) -> float:
    """Return the value, or 0.0 for NaN: an empty statistic in a status message."""
    return float(value) if math.isfinite(value) else 0.0


def _vector(values: np.ndarray) -> Vector3:
    return Vector3(x=float(values[0]), y=float(values[1]), z=float(values[2]))
