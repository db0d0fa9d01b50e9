"""Records what the demo sees of the running system over DDS."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image, JointState

from vla_msgs.msg import (
    ActionChunk,
    EndEffectorCommand,
    PolicyInfo,
    PolicyStatus,
    TokenSelection,
    WorldStatus,
)
from vla_policy_node.control.hold import HoldReason
from vla_policy_node.nodes import qos
from vla_policy_node.nodes.messages import to_ns
from vla_policy_node.policy.interface import CAMERAS
from vla_policy_node.policy.interface import TokenSelection as Selection
from vla_policy_node.wire.cdr import MessageError, stamp_of
from vla_policy_node.wire.images import decode_image

# Camera frames kept undecoded until the selection of their stamp arrives.
FRAME_HISTORY = 60


@dataclass
class RecordedFrame:
    """One inference: the pictures, their kept tokens, and the robot at that time."""

    stamp_ns: int
    images: dict[str, np.ndarray]
    selections: list[Selection]
    position_m: tuple[float, float, float]
    gripper_opening_m: float
    gripper_closing: bool
    success: bool


@dataclass
class RecordedEpisode:
    """Everything seen between a reset of the world and the end of the goal."""

    instruction: str
    task_id: int
    commands: list[tuple[int, HoldReason]] = field(default_factory=list)  # stamp ns, reason
    inference_ms: list[float] = field(default_factory=list)
    stage_ms: list[dict[str, float]] = field(default_factory=list)
    tokens_kept: list[int] = field(default_factory=list)
    observation_age_ms: list[float] = field(default_factory=list)
    frames: list[RecordedFrame] = field(default_factory=list)
    overlays: list[dict[str, np.ndarray]] = field(default_factory=list)
    world_steps: int = 0
    applied: int = 0
    limited: int = 0
    success: bool = False


class DemoRecorder(Node):
    """Subscribes everything a spectator can see and sorts it into episodes.

    Callbacks run on the one thread that spins this node; `begin` and `end` on the main thread.
    """

    def __init__(self, **node_options):
        super().__init__('demo', **node_options)
        self._lock = threading.Lock()
        self._episode: RecordedEpisode | None = None
        self._images = {camera: OrderedDict() for camera in CAMERAS}
        self._selections: dict[int, dict[str, Selection]] = {}
        self._overlays: dict[int, dict[str, np.ndarray]] = {}
        self._pose = PoseStamped()
        self._opening_m = 0.0
        self._gripper = 1.0
        self.info: PolicyInfo | None = None
        self.status: PolicyStatus | None = None
        self.world: WorldStatus | None = None
        self.tokens_total = 0
        self._subscribe()

    def begin(self, instruction: str, task_id: int) -> RecordedEpisode:
        """Start an episode; from now on everything seen belongs to it."""
        with self._lock:
            self._episode = RecordedEpisode(instruction, task_id)
            return self._episode

    def end(self) -> None:
        """Close the episode."""
        with self._lock:
            self._episode = None

    def _subscribe(self) -> None:
        def listen(kind, topic, callback, profile, raw=False):
            self.create_subscription(kind, topic, callback, profile, raw=raw)

        for camera in CAMERAS:
            listen(Image, f'{camera}/image_raw',
                   lambda raw, c=camera: self._on_image(c, raw), qos.camera_input(), raw=True)
            listen(Image, f'{camera}/overlay',
                   lambda msg, c=camera: self._on_overlay(c, msg), qos.overlay_output())
        listen(PoseStamped, 'ee_pose', self._on_pose, qos.state_input())
        listen(JointState, 'gripper_state', self._on_gripper, qos.state_input())
        # Every message counts, not only the newest: a recorder on a busy machine is late.
        listen(EndEffectorCommand, 'command', self._on_command, qos.event_output())
        listen(ActionChunk, 'action_chunk', self._on_chunk, qos.event_output())
        listen(TokenSelection, 'token_selection', self._on_selection, qos.event_output())
        listen(WorldStatus, 'world_status', self._on_world, qos.event_output())
        listen(PolicyStatus, 'policy_status', self._on_status, qos.event_output())
        listen(PolicyInfo, 'policy_info', self._on_info, qos.latched())

    def _on_image(self, camera: str, raw: bytes) -> None:
        history = self._images[camera]
        try:
            history[stamp_of(raw)] = raw
        except MessageError:
            return
        while len(history) > FRAME_HISTORY:
            history.popitem(last=False)

    def _on_overlay(self, camera: str, msg: Image) -> None:
        pair = self._overlays.setdefault(to_ns(msg.header.stamp), {})
        pair[camera] = decode_image(msg)
        if len(pair) == len(CAMERAS):
            self._overlays.clear()
            with self._lock:
                if self._episode:
                    self._episode.overlays.append(pair)

    def _on_pose(self, msg: PoseStamped) -> None:
        self._pose = msg

    def _on_gripper(self, msg: JointState) -> None:
        self._opening_m = abs(msg.position[0] - msg.position[1])

    def _on_command(self, msg: EndEffectorCommand) -> None:
        self._gripper = msg.gripper
        with self._lock:
            if self._episode:
                reason = HoldReason(msg.hold_reason.code)
                self._episode.commands.append((to_ns(msg.header.stamp), reason))
                self._episode.limited += msg.limited

    def _on_chunk(self, msg: ActionChunk) -> None:
        with self._lock:
            if self._episode:
                self._episode.inference_ms.append(msg.inference_ms)
                self._episode.tokens_kept.append(msg.tokens_kept)
                self._episode.stage_ms.append(dict(zip(msg.stage_names, msg.stage_ms,
                                                       strict=True)))
                self.tokens_total = msg.tokens_total

    def _on_selection(self, msg: TokenSelection) -> None:
        stamp_ns = to_ns(msg.header.stamp)
        grid = (msg.grid_height, msg.grid_width)
        scores = np.array(msg.scores, np.float32)
        seen = self._selections.setdefault(stamp_ns, {})
        seen[msg.camera] = Selection(
            msg.camera, np.array(msg.kept).reshape(grid),
            scores.reshape(grid) if scores.size else scores,
            (msg.crop_x, msg.crop_y, msg.crop_width, msg.crop_height), msg.camera_transform,
        )
        if len(seen) == len(CAMERAS):
            self._selections.clear()
            self._add_frame(stamp_ns, seen)

    def _add_frame(self, stamp_ns: int, selections: dict[str, Selection]) -> None:
        raw = {camera: self._images[camera].get(stamp_ns) for camera in CAMERAS}
        if None in raw.values():
            return
        images = {camera: decode_image(deserialize_message(data, Image))
                  for camera, data in raw.items()}
        p = self._pose.pose.position
        with self._lock:
            if self._episode:
                self._episode.frames.append(RecordedFrame(
                    stamp_ns, images, [selections[camera] for camera in CAMERAS],
                    (p.x, p.y, p.z), self._opening_m, self._gripper < 0.5,
                    self._episode.success,
                ))

    def _on_world(self, msg: WorldStatus) -> None:
        self.world = msg
        with self._lock:
            if self._episode:
                self._episode.world_steps += 1
                self._episode.applied += msg.action_applied
                self._episode.success |= msg.success
                if np.isfinite(msg.observation_age_ms):
                    self._episode.observation_age_ms.append(msg.observation_age_ms)

    def _on_status(self, msg: PolicyStatus) -> None:
        self.status = msg

    def _on_info(self, msg: PolicyInfo) -> None:
        self.info = msg
