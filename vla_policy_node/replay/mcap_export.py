"""An MCAP for Foxglove: overlays, commands, chunks and differences as ROS messages.

The layout that goes with it is config/foxglove_layout.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from geometry_msgs.msg import Vector3Stamped
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import StoragePlugin, Writer
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from vla_policy_node.nodes.message_definitions import MessageDefinitions, type_name
from vla_policy_node.nodes.messages import to_chunk, to_command, to_time
from vla_policy_node.policy.interface import ActionChunk
from vla_policy_node.replay.compare import PairedInference
from vla_policy_node.replay.evaluate import Evaluation
from vla_policy_node.replay.trace import Inference, Trace

_BAG_VERSION = 8
_JPEG_QUALITY = 82


class McapExport:
    """Writes a folder with one .mcap while the pictures of a bag go by; a context manager.

    /overlay: both policies as in overlay.mp4. /a/..., /b/...: action_chunk and command of each.
    /difference: x translation (mm), y rotation (mrad), z distance of the chunks (action units).
    """

    def __init__(self, folder: Path, evaluation: Evaluation):
        self._traces = dict(zip('ab', evaluation.traces, strict=False))
        self._definitions = MessageDefinitions()
        self._connections = {}
        self._writer = Writer(folder, version=_BAG_VERSION, storage_plugin=StoragePlugin.MCAP)

    def __enter__(self) -> McapExport:
        self._writer.open()
        for name, trace in self._traces.items():
            for time_ns, command in trace.commands:
                self._write(f'/{name}/command', time_ns,
                            to_command(command, time_ns, trace.spec.frame_id))
        return self

    def __exit__(self, kind, *exception) -> None:
        if kind is None:
            self._writer.close()
        else:
            self._writer.abort()

    def add(self, inferences: Sequence[Inference], pair: PairedInference | None,
            images: Mapping[str, np.ndarray], picture: np.ndarray) -> None:
        """Write one moment."""
        stamp_ns = inferences[0].stamp_ns
        header = Header(stamp=to_time(stamp_ns))
        _, data = cv2.imencode('.jpg', cv2.cvtColor(picture, cv2.COLOR_RGB2BGR),
                               [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        self._write('/overlay', stamp_ns,
                    CompressedImage(header=header, format='jpeg', data=data.tobytes()))
        for number, (name, inference) in enumerate(zip(self._traces, inferences, strict=True)):
            self._write(f'/{name}/action_chunk', stamp_ns,
                        _chunk(self._traces[name], inference, header, number))
        if pair is not None:
            message = Vector3Stamped(header=header)
            message.vector.x = pair.translation_m * 1e3
            message.vector.y = pair.rotation_rad * 1e3
            message.vector.z = pair.distance
            self._write('/difference', stamp_ns, message)

    def _write(self, topic: str, time_ns: int, message) -> None:
        if topic not in self._connections:
            kind = type_name(type(message))
            self._connections[topic] = self._writer.add_connection(
                topic, kind, typestore=self._definitions.learn(kind))
        self._writer.write(self._connections[topic], time_ns, serialize_message(message))


def _chunk(trace: Trace, inference: Inference, header: Header, sequence: int):
    chunk = ActionChunk(
        inference.actions, (), dict(inference.stage_ms), trace.method, inference.tokens_kept,
        trace.tokens_total, inference.flops)
    return to_chunk(chunk, header, inference.instruction, sequence, inference.epoch,
                    trace.period_ns, inference.age_ns, inference.spread_ns)
