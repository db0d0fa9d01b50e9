"""Figures and pictures of recorded episodes. Reads episodes, writes files; no ROS."""

import json
import math
import os
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.table import Table

from vla_policy_node.common.code_version import date_and_code
from vla_policy_node.control.hold import HoldReason
from vla_policy_node.control.latency import percentiles
from vla_policy_node.demo.recorder import RecordedEpisode, RecordedFrame
from vla_policy_node.drawing.filmstrip import Moment, ObservedStep, filmstrip, pick_moments
from vla_policy_node.drawing.overlay import draw_overlay
from vla_policy_node.drawing.video import OverlayVideo
from vla_policy_node.policy.interface import CAMERAS

OVERLAY_RATE_HZ = 5
GIF_FRAMES = 120


def summarise(
    episodes: Sequence[RecordedEpisode], tokens_total: int, period_ms: float, real_time: bool
) -> dict:
    """Return the figures of demo.json.

    observation_age_ms: capture of the picture to actuation in the world. command_jitter_ms:
    distance of the interval between two commands from the control period; like the rate, it
    exists only in real time.
    """
    intervals_ms = np.concatenate([[], *(
        np.diff([stamp for stamp, _ in episode.commands]) / 1e6
        for episode in episodes if real_time)])
    reasons = Counter(reason for episode in episodes for _, reason in episode.commands)
    sent = reasons.pop(HoldReason.NONE, 0)
    return {
        'pace': 'real-time' if real_time else 'lock-step',
        'episodes': len(episodes),
        'successes': sum(episode.success for episode in episodes),
        'inferences': sum(len(episode.inference_ms) for episode in episodes),
        'inference_ms': percentiles(_joined(episodes, 'inference_ms')),
        'stage_ms': _stage_medians(episodes),
        'tokens_kept_mean': _mean(_joined(episodes, 'tokens_kept')),
        'tokens_total': tokens_total,
        'observation_age_ms': percentiles(_joined(episodes, 'observation_age_ms')),
        'command_jitter_ms': percentiles(np.abs(intervals_ms - period_ms)),
        'command_rate_hz': 1e3 / _mean(intervals_ms),
        'commands_sent': sent,
        'commands_limited': sum(episode.limited for episode in episodes),
        'overlays': sum(len(episode.overlays) for episode in episodes),
        'actions_applied': sum(episode.applied for episode in episodes),
        'holds': {reason.name.lower(): count for reason, count in reasons.most_common()},
        'tasks': [{'task_id': e.task_id, 'instruction': e.instruction, 'success': e.success,
                   'steps': e.world_steps, 'actions_applied': e.applied} for e in episodes],
        'machine': f'{platform.machine()}, {os.cpu_count()} cores, '
                   f'Python {platform.python_version()}',
        **date_and_code(),
    }


def problems(summary: dict) -> list[str]:
    """Return why the run does not count, '' if it does."""
    found = []
    if not summary['inferences']:
        found.append('No inference finished.')
    if not summary['overlays']:
        found.append('The visualizer drew nothing.')
    if not summary['actions_applied']:
        found.append('The world applied no action.')
    for task in summary['tasks']:
        if not task['actions_applied']:
            found.append(f"No action was applied in the episode '{task['instruction']}'.")
    return found


def table(summary: dict) -> Table:
    """Return the figures for a terminal."""
    inference, age = summary['inference_ms'], summary['observation_age_ms']
    jitter = summary['command_jitter_ms']
    kept, total = summary['tokens_kept_mean'], summary['tokens_total']
    if summary['pace'] == 'lock-step':
        jitter_text = rate_text = 'none in lock-step'
    else:
        jitter_text = f"{jitter['p50']:.2f} / {jitter['p99']:.2f} ms"
        rate_text = f"{summary['command_rate_hz']:.2f} Hz"
    rows = Table(title='Demo', show_header=False, title_justify='left')
    rows.add_column(style='bold')
    rows.add_column(justify='right')
    for name, value in (
        ('episodes', f"{summary['episodes']}, {summary['pace']}"),
        ('successes', f"{summary['successes']}"),
        ('inference p50 / p95', f"{inference['p50']:.0f} / {inference['p95']:.0f} ms"),
        ('visual tokens kept', f'{kept:.0f} of {total} ({kept / max(total, 1):.0%})'),
        ('observation age at actuation p50 / p95',
         f"{age['p50']:.0f} / {age['p95']:.0f} ms"),
        ('control-timer jitter p50 / p99', jitter_text),
        ('command rate', rate_text),
        ('actions sent', f"{summary['commands_sent']}"),
        ('holds', ', '.join(f'{name} {count}' for name, count in summary['holds'].items())
         or 'none'),
    ):
        rows.add_row(name, value)
    return rows


def write_json(path: Path, summary: dict) -> None:
    """Write the figures; NaN becomes null, as JSON has none."""
    path.write_text(json.dumps(_without_nan(summary), indent=2) + '\n')


def picture_names(episodes: int) -> list[str]:
    """Return the names of all files that `write_pictures` may write for so many episodes."""
    strips = [f'filmstrip_{number}.png' for number in range(episodes)]
    return ['overlay.mp4', 'overlay.gif', *strips, *(f'tokens_{camera}.png' for camera in CAMERAS)]


def write_pictures(episodes: Sequence[RecordedEpisode], out: Path) -> list[Path]:
    """Write overlay videos, a filmstrip per episode and stills; return the files."""
    files = _write_videos([pair for episode in episodes for pair in episode.overlays], out)
    for number, episode in enumerate(episodes):
        if not episode.frames:
            continue
        path = out / f'filmstrip_{number}.png'
        _save(path, _filmstrip(episode))
        files.append(path)
    first_frames = [episode.frames[0] for episode in episodes if episode.frames]
    for frame in first_frames[:1]:
        for camera in CAMERAS:
            path = out / f'tokens_{camera}.png'
            _save(path, _still(frame, camera))
            files.append(path)
    return files


def _write_videos(overlays: Sequence[dict[str, np.ndarray]], out: Path) -> list[Path]:
    if not overlays:
        return []
    paths = [out / 'overlay.mp4', out / 'overlay.gif']
    step = math.ceil(len(overlays) / GIF_FRAMES)
    for path, every, shrink in ((paths[0], 1, 1), (paths[1], step, 2)):
        with OverlayVideo(path, fps=OVERLAY_RATE_HZ) as video:
            for pair in overlays[::every]:
                picture = np.hstack([pair[camera] for camera in CAMERAS])
                video.add(picture[::shrink, ::shrink])
    return paths


def _filmstrip(episode: RecordedEpisode) -> np.ndarray:
    trace = [
        ObservedStep(
            time_s=frame.stamp_ns / 1e9, position_m=frame.position_m,
            gripper_opening_m=frame.gripper_opening_m, gripper_closing=frame.gripper_closing,
            success=frame.success)
        for frame in episode.frames]
    trace[-1]['success'] = episode.success
    moments = [Moment(label, episode.frames[index].images, episode.frames[index].selections)
               for label, index in pick_moments(trace)]
    return filmstrip(moments, title=episode.instruction, most_beside=2)


def _still(frame: RecordedFrame, camera: str) -> np.ndarray:
    selection = frame.selections[CAMERAS.index(camera)]
    kept = f'{int(selection.kept.sum())} of {selection.kept.size} tokens kept'
    return draw_overlay(frame.images[camera], selection.kept, selection.crop,
                        selection.camera_transform, [camera.replace('_', ' '), kept],
                        selection.scores)


def _save(path: Path, image: np.ndarray) -> None:
    Image.fromarray(image).save(path, optimize=True)


def _joined(episodes: Sequence[RecordedEpisode], name: str) -> np.ndarray:
    return np.concatenate([[], *(getattr(episode, name) for episode in episodes)])


def _stage_medians(episodes: Sequence[RecordedEpisode]) -> dict[str, float]:
    stages = [stage for episode in episodes for stage in episode.stage_ms]
    return {name: float(np.median([stage[name] for stage in stages]))
            for name in (stages[0] if stages else {})}


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
