"""The visualizer node: draws the kept visual tokens on the exact image that the policy used.

It costs next to nothing until somebody looks: images are filed undecoded by stamp, and one is
decoded only when a token selection names it and its overlay has a subscriber.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial
from time import monotonic

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.publisher import Publisher
from sensor_msgs.msg import Image

from vla_msgs.msg import TokenSelection
from vla_policy_node.common.ros_names import absolute
from vla_policy_node.contract import find_contract
from vla_policy_node.drawing.overlay import caption, draw_overlay
from vla_policy_node.nodes import qos
from vla_policy_node.nodes.ending import leave
from vla_policy_node.nodes.image_messages import to_image_message
from vla_policy_node.nodes.message_classes import message_class
from vla_policy_node.nodes.messages import SHADOW_ENTRY, to_ns
from vla_policy_node.nodes.parameters import ParameterStore, parameter
from vla_policy_node.nodes.running import run
from vla_policy_node.wire.cdr import read_compressed_image, read_image, stamp_of
from vla_policy_node.wire.images import decode_compressed, decode_image
from vla_policy_node.wire.streams import InputStreams

# Older reports of the shadow are not shown; diagnostics come once a second.
SHADOW_AGE_S = 5.0


@dataclass(frozen=True)
class VisualizerParameters:
    """Parameters of the node `visualizer`; those marked tunable may change while it runs."""

    contract: str = parameter(
        '', 'The robot whose cameras to draw on, as for the policy node.')
    compressed: bool = parameter(
        False, 'Subscribe <camera>/image_raw/compressed instead of <camera>/image_raw.'
    )
    image_history: int = parameter(
        60,
        'Images kept per camera while their selection is computed; at least the camera rate '
        'times the inference latency.',
        low=1,
        high=1000,
        tunable=True,
    )
    max_rate_hz: float = parameter(
        10.0,
        'Most overlays per camera; selections in between are not drawn.',
        'Hz',
        0.1,
        100.0,
        tunable=True,
    )
    policy_node: str = parameter(
        'policy', 'Node whose shadow is shown, by its entries in /diagnostics.')

    def __post_init__(self) -> None:
        """Raise ValueError for a contract that cannot be used."""
        find_contract(self.contract)


@dataclass
class _Camera:
    """What is known of one camera."""

    overlay: Publisher
    frames: OrderedDict[int, bytes] = field(default_factory=OrderedDict)  # stamp ns -> serialised
    waiting: TokenSelection | None = None  # came before its image
    drawn_at_s: float = float('-inf')  # monotonic clock


class VisualizerNode(Node):
    """Pairs images and token selections by exact stamp and publishes overlays.

    Subscribes the pictures of the contract's cameras and `token_selection`;
    publishes `<camera>/overlay`, with the header of the image. All callbacks run on the thread
    that spins the node. Raises ParameterError if a parameter cannot be used.
    """

    def __init__(self, **options) -> None:
        super().__init__('visualizer', **options)
        store = ParameterStore(self, VisualizerParameters, lambda: True, self._apply)
        self._settings = store.checked()
        self._cameras = {}
        streams = InputStreams(find_contract(self._settings.contract), self._settings.compressed)
        for name in streams.cameras:
            kind, topic = streams.topics[name]
            self._cameras[name] = _Camera(
                self.create_publisher(Image, f'{name}/overlay', qos.overlay_output())
            )
            self.create_subscription(
                message_class(kind),
                topic,
                partial(self._on_image, self._cameras[name]),
                qos.camera_input(),
                raw=True,
            )
        self.create_subscription(
            TokenSelection, 'token_selection', self._on_selection, qos.event_output()
        )
        self._shadow, self._shadow_at_s = '', float('-inf')
        # /diagnostics is everybody's.
        policy = absolute(self._settings.policy_node, self.get_namespace().rstrip('/'))
        self._shadow_entry = f'{policy}{SHADOW_ENTRY}'
        self.create_subscription(
            DiagnosticArray, '/diagnostics', self._on_diagnostics, qos.event_output()
        )

    def _apply(self, settings: VisualizerParameters) -> None:
        self._settings = settings

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        """Store the latest comparison of the shadow of this system's policy."""
        for status in msg.status:
            if status.name == self._shadow_entry:
                self._shadow, self._shadow_at_s = status.message, monotonic()

    def _on_image(self, camera: _Camera, raw: bytes) -> None:
        try:
            stamp_ns = stamp_of(raw)
        except ValueError as error:
            self._complain(error)
            return
        camera.frames[stamp_ns] = raw
        while len(camera.frames) > self._settings.image_history:
            camera.frames.popitem(last=False)
        if camera.waiting is not None and to_ns(camera.waiting.header.stamp) == stamp_ns:
            self._publish_overlay(camera, camera.waiting)

    def _on_selection(self, selection: TokenSelection) -> None:
        camera = self._cameras.get(selection.camera)
        if camera is None:
            known = ', '.join(self._cameras)
            self._complain(f"No camera '{selection.camera}' is shown here, only {known}.")
        elif camera.overlay.get_subscription_count() > 0:
            camera.waiting = selection
            if to_ns(selection.header.stamp) in camera.frames:
                self._publish_overlay(camera, selection)

    def _publish_overlay(self, camera: _Camera, selection: TokenSelection) -> None:
        """Draw and publish, unless the last overlay is too recent; the image must be filed."""
        camera.waiting = None
        now_s = monotonic()
        if now_s - camera.drawn_at_s < 1 / self._settings.max_rate_hz:
            return
        camera.drawn_at_s = now_s
        raw = camera.frames[to_ns(selection.header.stamp)]
        try:
            image = self._decode(raw)
            is_recent = now_s - self._shadow_at_s < SHADOW_AGE_S
            picture = _draw(image, selection, self._shadow if is_recent else '')
        except ValueError as error:
            self._complain(error)
            return
        camera.overlay.publish(to_image_message(picture, selection.header))

    def _decode(self, raw: bytes) -> np.ndarray:
        if self._settings.compressed:
            return decode_compressed(read_compressed_image(raw))
        return decode_image(read_image(raw))

    def _complain(self, reason: object) -> None:
        self.get_logger().warning(str(reason), throttle_duration_sec=5.0)


def _draw(image: np.ndarray, selection: TokenSelection, remark: str = '') -> np.ndarray:
    """Return the overlay, with a remark below the caption.

    Raises ValueError if the selection contradicts itself.
    """
    grid = (selection.grid_height, selection.grid_width)
    kept = np.array(selection.kept, bool)
    scores = np.asarray(selection.scores, np.float32)
    if kept.size == 0 or kept.size != grid[0] * grid[1] or scores.size not in (0, kept.size):
        raise ValueError(
            f'The token selection has {kept.size} tokens and {scores.size} scores '
            f'for a grid of {grid[0]}x{grid[1]}.'
        )
    kept = kept.reshape(grid)
    crop = (selection.crop_x, selection.crop_y, selection.crop_width, selection.crop_height)
    lines = caption(
        selection.camera, selection.method, kept, selection.inference_ms, selection.instruction
    )
    lines += [remark] if remark else []
    scores = scores.reshape(grid) if scores.size else None
    return draw_overlay(image, kept, crop, selection.camera_transform, lines, scores)


def main(args: list[str] | None = None) -> None:
    """Run the node until SIGINT or SIGTERM."""
    run(VisualizerNode, args)
    leave()


if __name__ == '__main__':
    main()
