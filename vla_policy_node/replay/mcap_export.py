"""Exports overlays, commands, chunks and differences as an MCAP file for Foxglove.

config/foxglove_layout.json is the matching layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer

from vla_policy_node.policy.interface import ActionChunk
from vla_policy_node.replay.compare import PairedInference
from vla_policy_node.replay.evaluate import Evaluation
from vla_policy_node.replay.trace import Trace, TracedInference
from vla_policy_node.wire.build import MessageBuilder
from vla_policy_node.wire.definitions import MessageDefinitions

_BAG_VERSION: Literal[8] = 8
_JPEG_QUALITY = 82


class McapExport:
    """Writes a folder with one .mcap while the pictures of a bag go by; a context manager.

    /overlay: both policies as in overlay.mp4. /a/..., /b/...: action_chunk and command of each.
    /difference: x translation (mm), y rotation (mrad), z distance of the chunks (action units).
    """

    def __init__(self, folder: Path, evaluation: Evaluation):
        self._traces = dict(zip('ab', evaluation.traces, strict=False))
        self._definitions = MessageDefinitions()
        self._builder = MessageBuilder(self._definitions.kind, lambda numbers: numbers)
        self._connections: dict[str, Any] = {}
        self._writer = Writer(folder, version=_BAG_VERSION, storage_plugin=StoragePlugin.MCAP)

    def __enter__(self) -> McapExport:
        self._writer.open()
        for name, trace in self._traces.items():
            for time_ns, command in trace.commands:
                self._write(f'/{name}/command', time_ns,
                            self._builder.command(command, time_ns, trace.spec.frame_id))
        return self

    def __exit__(self, kind, *exception) -> None:
        if kind is None:
            self._writer.close()
        else:
            self._writer.abort()

    def add(self, inferences: Sequence[TracedInference], pair: PairedInference | None,
            images: Mapping[str, np.ndarray], picture: np.ndarray) -> None:
        """Write one moment."""
        stamp_ns = inferences[0].stamp_ns
        header = self._builder.header(stamp_ns, '')
        _, data = cv2.imencode('.jpg', cv2.cvtColor(picture, cv2.COLOR_RGB2BGR),
                               [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        self._write('/overlay', stamp_ns,
                    self._definitions.kind('sensor_msgs/msg/CompressedImage')(
                        header=header, format='jpeg', data=data.ravel()))
        for number, (name, inference) in enumerate(zip(self._traces, inferences, strict=True)):
            self._write(f'/{name}/action_chunk', stamp_ns,
                        self._chunk(self._traces[name], inference, header, number))
        if pair is not None:
            vector = self._builder.vector(np.array(
                [pair.translation_m * 1e3, pair.rotation_rad * 1e3, pair.distance]))
            self._write('/difference', stamp_ns, self._definitions.kind(
                'geometry_msgs/msg/Vector3Stamped')(header=header, vector=vector))

    def _write(self, topic: str, time_ns: int, message: Any) -> None:
        if topic not in self._connections:
            kind = message.__msgtype__
            self._connections[topic] = self._writer.add_connection(
                topic, kind, typestore=self._definitions.learn(kind))
        self._writer.write(self._connections[topic], time_ns, self._definitions.write(message))

    def _chunk(self, trace: Trace, inference: TracedInference, header: Any, sequence: int) -> Any:
        chunk = ActionChunk(
            inference.actions, (), dict(inference.stage_ms), trace.method, inference.tokens_kept,
            trace.tokens_total, inference.flops)
        return self._builder.chunk(
            chunk, header, inference.instruction, sequence, inference.epoch, trace.period_ns,
            inference.age_ns, inference.spread_ns)
