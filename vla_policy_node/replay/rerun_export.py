"""Exports cameras, kept tokens, actions and latency for the Rerun viewer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import rerun as rr
import rerun.blueprint as rrb

from vla_policy_node.drawing.overlay import token_mask
from vla_policy_node.replay.compare import PairedInference
from vla_policy_node.replay.evaluate import Evaluation
from vla_policy_node.replay.metrics import AXES, sent_actions
from vla_policy_node.replay.trace import Trace, TracedInference

TIMELINE = 'bag_time'
_JPEG_QUALITY = 85


class RerunExport:
    """Writes a .rrd while the pictures of a bag go by. A context manager."""

    def __init__(self, path: Path, evaluation: Evaluation):
        self._traces = evaluation.traces
        self._start_ns = evaluation.traces[0].inferences[0].stamp_ns
        self._stream = rr.RecordingStream('vla_replay', recording_id=evaluation.bag.name)
        self._stream.save(str(path), default_blueprint=_blueprint(self._traces))
        for trace in self._traces:
            self._log_commands(trace)
        actions = evaluation.summary.actions
        self._log_motion('actions/bag', actions.target_ns, actions.delta, actions.gripper)

    def __enter__(self) -> RerunExport:
        return self

    def __exit__(self, *exception) -> None:
        self._stream.flush()
        self._stream.disconnect()

    def add(self, inferences: Sequence[TracedInference], pair: PairedInference | None,
            images: Mapping[str, np.ndarray], picture: np.ndarray) -> None:
        """Log one moment; `picture` is its rendering without a viewer."""
        stream = self._stream
        stream.set_time(TIMELINE, duration=(inferences[0].stamp_ns - self._start_ns) / 1e9)
        for camera, image in images.items():
            stream.log(f'cameras/{camera}', rr.Image(image).compress(_JPEG_QUALITY))
        for trace, inference in zip(self._traces, inferences, strict=True):
            name = _entity(trace)
            for camera, selection in trace.selections(inference).items():
                mask = token_mask(images[camera].shape, selection.kept, selection.crop,
                                  selection.camera_transform)
                stream.log(f'cameras/{camera}/{name}', rr.SegmentationImage(mask))
                stream.log(f'tokens/{name}/{camera}', rr.Scalars(float(selection.kept.sum())))
            stream.log(f'latency_ms/{name}', rr.Scalars(sum(inference.stage_ms.values())))
            for stage, milliseconds in inference.stage_ms.items():
                stream.log(f'stages_ms/{name}/{stage}', rr.Scalars(milliseconds))
        if pair is not None:
            stream.log('difference/translation_mm', rr.Scalars(pair.translation_m * 1e3))
            stream.log('difference/rotation_mrad', rr.Scalars(pair.rotation_rad * 1e3))

    def _log_commands(self, trace: Trace) -> None:
        sent = sent_actions(trace)
        self._log_motion(f'actions/{_entity(trace)}', sent['target_ns'], sent['delta'],
                         sent['gripper'])

    def _log_motion(self, entity: str, target_ns, delta, gripper) -> None:
        for column, (axis, _, unit) in enumerate(AXES):
            self._log_column(f'{entity}/{axis}_{unit}', target_ns, delta[:, column])
        self._log_column(f'{entity}/gripper', target_ns, gripper)

    def _log_column(self, entity: str, target_ns, values) -> None:
        known = np.isfinite(values)
        if known.any():
            seconds = (np.asarray(target_ns)[known] - self._start_ns) / 1e9
            self._stream.send_columns(
                entity, indexes=[rr.TimeColumn(TIMELINE, duration=seconds)],
                columns=rr.Scalars.columns(scalars=np.asarray(values, float)[known]))


def _entity(trace: Trace) -> str:
    return ''.join(c if c.isalnum() else '_' for c in trace.label)


def _blueprint(traces: Sequence[Trace]) -> rrb.Blueprint:
    cameras = rrb.Horizontal(*(
        rrb.Spatial2DView(origin=f'cameras/{camera}', name=camera) for camera in traces[0].grids))
    plots = [rrb.TimeSeriesView(origin=name, name=title) for name, title in (
        ('actions', 'actions, per control period'), ('latency_ms', 'inference, ms'),
        ('tokens', 'tokens kept'))]
    if len(traces) > 1:
        plots.insert(0, rrb.TimeSeriesView(origin='difference', name='difference'))
    return rrb.Blueprint(rrb.Vertical(cameras, rrb.Grid(*plots)), collapse_panels=True)
