"""A filmstrip of an episode: its key moments, what the policy saw and which tokens it kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, TypedDict

import cv2
import numpy as np

from vla_policy_node.drawing.overlay import highlight, put_text

if TYPE_CHECKING:
    from vla_policy_node.policy.interface import TokenSelection

_FINGERS_MOVED_M = 0.002  # less than this is the play of a gripper, not a closing
_PAPER, _INK, _MUTED_INK = (255, 255, 255), (28, 32, 38), (112, 120, 132)


class ObservedStep(TypedDict):
    """What `pick_moments` needs to know of one control step."""

    time_s: float
    position_m: Sequence[float]  # end effector in the robot base frame, z up
    gripper_opening_m: float  # distance between the fingers
    gripper_closing: bool  # the command of this step closes the gripper, or holds it closed
    success: bool


@dataclass(frozen=True)
class Moment:
    """One instant of an episode, ready to be drawn."""

    label: str
    images: Mapping[str, np.ndarray]  # camera -> [H, W, 3] uint8 RGB, in the order of the columns
    selections: Sequence[TokenSelection]  # of the same images; a camera without one stays clear


def pick_moments(trace: Sequence[ObservedStep]) -> list[tuple[str, int]]:
    """Return four labels with their step indices, in the order of time.

    With a closing of the gripper: the lowest point before it, the fingers closed, the highest
    point while closed, and the fingers open again (or the last step). Of several closings the
    longest counts. The labels claim a grasp and a placement only if the episode succeeded.
    Without a closing: four evenly spaced steps, as there is no event to name.
    """
    if not trace:
        raise ValueError('The episode has no steps to pick moments from.')
    opening_m = np.array([step['gripper_opening_m'] for step in trace])
    begin, end = _longest_closing(trace)
    held = begin + int(np.argmax(opening_m[begin:end] <= _closed_m(opening_m[begin:end])))
    if opening_m[begin] - opening_m[held] < _FINGERS_MOVED_M:
        spaced = np.linspace(0, len(trace) - 1, 4).round().astype(int)
        return list(zip(('start', 'early', 'late', 'end'), spaced.tolist(), strict=True))

    height_m = np.array([step['position_m'][2] for step in trace])
    lowest = int(np.argmin(height_m[: begin + 1]))
    highest = held + int(np.argmax(height_m[held:end]))
    reopened = opening_m[end:] > (opening_m[begin] + opening_m[held]) / 2
    opened = end + int(np.argmax(reopened)) if reopened.any() else len(trace) - 1
    if any(step['success'] for step in trace):
        labels = ('approach', 'grasp', 'lift', 'place' if reopened.any() else 'end')
    else:
        labels = ('approach', 'closed', 'highest', 'opened' if reopened.any() else 'end')
    return list(zip(labels, (lowest, held, highest, opened), strict=True))


def filmstrip(
    moments: Sequence[Moment], tile_px: int = 200, title: str = '', most_beside: int | None = None
) -> np.ndarray:
    """Return the moments side by side, [H, W, 3] uint8 RGB on white.

    Each moment has its cameras as columns; above the pictures as taken, below the same pictures
    with the kept tokens lit and counted. `tile_px` is the height of one picture. `most_beside`:
    after so many moments there is another row, so that a page need not shrink the strip; None for
    one row.
    """
    if not moments:
        raise ValueError('A filmstrip needs at least one moment.')
    text_px = max(9, tile_px // 14)
    blocks = [_moment_block(moment, tile_px, text_px) for moment in moments]
    labels = _row_labels(tile_px, text_px, blocks[0].shape[0])
    margin = _blank(blocks[0].shape[0], 2 * text_px)
    beside = most_beside or len(blocks)
    rows = [np.hstack([labels, *(part for block in blocks[i:i + beside]
                                 for part in (block, margin))])
            for i in range(0, len(blocks), beside)]
    width = max(row.shape[1] for row in rows)
    strip = np.vstack([np.hstack([row, _blank(row.shape[0], width - row.shape[1])])
                       for row in rows])
    if not title:
        return strip
    band = _blank(3 * text_px, strip.shape[1])
    left = 3 * text_px
    put_text(band, title, left, 2 * text_px, text_px + 2, _INK, band.shape[1] - 2 * left)
    return np.vstack([band, strip])


def _longest_closing(trace: Sequence[ObservedStep]) -> tuple[int, int]:
    """Return the first step and the one after the last of the longest closing; (0, 1) if none."""
    begin, end, index = 0, 1, 0
    longest = 0
    for closing, run in groupby(trace, key=lambda step: bool(step['gripper_closing'])):
        length = len(list(run))
        if closing and length > longest:
            begin, end, longest = index, index + length, length
        index += length
    return begin, end


def _closed_m(opening_m: np.ndarray) -> float:
    """Return the opening at which the fingers count as closed: most of the way to the least."""
    return opening_m.min() + 0.1 * (opening_m[0] - opening_m.min())


def _moment_block(moment: Moment, tile_px: int, text_px: int) -> np.ndarray:
    """Return label, pictures, lit pictures and counts of one moment as one picture."""
    selections = {selection.camera: selection for selection in moment.selections}
    columns = [
        _camera_column(camera, image, selections.get(camera), tile_px, text_px)
        for camera, image in moment.images.items()
    ]
    gap = _blank(columns[0].shape[0], 3)
    pictures = np.hstack([part for column in columns for part in (column, gap)][:-1])
    band = _blank(2 * text_px + 2, pictures.shape[1])
    put_text(band, moment.label, 1, round(1.4 * text_px), text_px + 3, _INK, band.shape[1])
    return np.vstack([band, pictures])


def _camera_column(camera, image, selection, tile_px: int, text_px: int) -> np.ndarray:
    width = round(image.shape[1] * tile_px / image.shape[0])
    raw = cv2.resize(image, (width, tile_px), interpolation=cv2.INTER_AREA)
    lit, count = raw, 'all tokens'
    if selection is not None:
        lit = highlight(raw, selection.kept, selection.crop, selection.camera_transform)
        count = f'{int(selection.kept.sum())} of {selection.kept.size}'
    name = camera.replace('_', ' ')
    return np.vstack(
        [_text_line(name, width, text_px), raw, _blank(3, width), lit]
        + [_text_line(count, width, text_px)]
    )


def _text_line(text: str, width: int, text_px: int) -> np.ndarray:
    line = _blank(round(1.8 * text_px), width)
    put_text(line, text, 1, round(1.3 * text_px), text_px, _MUTED_INK, width - 2)
    return line


def _row_labels(tile_px: int, text_px: int, height: int) -> np.ndarray:
    """Return the column at the left: what each row shows, written upwards."""
    text = _blank(3 * text_px, height)
    bottom_line = round(1.8 * text_px)
    put_text(text, 'kept tokens', bottom_line, 2 * text_px, text_px, _INK, tile_px)
    put_text(text, 'cameras', bottom_line + tile_px + 3, 2 * text_px, text_px, _INK, tile_px)
    return np.ascontiguousarray(np.rot90(text))


def _blank(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), _PAPER, np.uint8)
