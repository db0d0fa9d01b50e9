"""Camera checks: is the image live, of constant size, and from the right camera?

A policy acts on any image it gets, so every frame is checked here, on a sample of its pixels.
"""

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from vla_policy_node.control.freeze import FreezeDetector
from vla_policy_node.control.hold import Hold, HoldError, HoldReason
from vla_policy_node.control.views import GRID, likeness, view_of

# Anything smaller is not a picture; the smallest sensors have some hundred pixels a side.
MIN_SIDE_PX = 16
# A covered lens (black is 16 in video) or glare: told by the mean, while neither the parts nor the
# samples differ. Noise of 4 grey levels: samples that deviate by 4, parts that differ by 2. With a
# mean between these two that may be a plain table or mat close to the camera.
_BLACK, _WHITE = 24.0, 248.0
_UNIFORM_PARTS, _UNIFORM_DEVIATION = 4.0, 8.0
# A dead sensor or driver that sends one colour; JPEG leaves it one colour. Less than the rounding
# to whole grey levels and the noise (0.5 at least) of any sensor add up to.
_ONE_COLOUR = 0.5
# Frames of another size since the goal began that one may be, by a bit that flipped on the way.
_STRAYS_FORGIVEN = 2
# Correlation above which two cameras show the same picture. The two views of LIBERO's scenes: 0.2
# at most.
_SAME_VIEW = 0.98
# Swapped: more as the other camera saw it a moment ago than as this one did.
_OTHERS_VIEW, _OWN_BEHIND = 0.7, 0.1
# Likeness to the reference. In LIBERO, with objects elsewhere, the arm anywhere, other light and
# noise: 0.63 and more; after a shift by 6 % of the width, a turn by 10 degrees or a swap: 0.47 and
# less.
_REFERENCE_VIEW = 0.5


@dataclass(frozen=True)
class Shape:
    """What all frames of a camera share: size in px and pixel encoding."""

    width: int
    height: int
    encoding: str

    def __str__(self) -> str:
        return f'{self.width}x{self.height} {self.encoding}'


@dataclass
class _Camera:
    """What is known about one camera; `begun` clears what belongs to a goal."""

    freeze: FreezeDetector
    frozen: bool = False
    seen_shape: Shape | None = None
    seen_view: np.ndarray | None = None
    shapes: Counter[Shape] = field(default_factory=Counter)  # frames of this goal
    strays: int = 0  # of them, those of another shape than most
    own_view: np.ndarray | None = None  # of the last frame that passed

    def begun(self) -> None:
        self.shapes = Counter([self.seen_shape] if self.seen_shape else [])
        self.strays, self.seen_view, self.own_view = 0, None, None


class CameraWatch:
    """Judges every frame of every camera (any thread; one lock covers it all).

    freeze_timeout_ns: see `FreezeDetector`.
    references: camera -> samples [GRID, GRID, 3] of a picture with the view it must have, for
        cameras that stand still.
    """

    def __init__(
        self, cameras: tuple[str, ...], freeze_timeout_ns: int,
        references: Mapping[str, np.ndarray] | None = None,
    ):
        self._references = dict(references or {})
        self._lock = threading.Lock()
        self._cameras = {name: _Camera(FreezeDetector(freeze_timeout_ns)) for name in cameras}

    def check(self, camera: str, stamp_ns: int, shape: Shape, samples: np.ndarray) -> None:
        """Judge one frame by its samples [GRID, GRID, 3] uint8.

        Raises HoldError (INPUT_INVALID, CAMERA_CHANGED) for a frame that must not be used. A
        frozen camera is not the error of one frame; `health` reports it.
        """
        with self._lock:
            state = self._cameras[camera]
            state.frozen = state.freeze.observe(stamp_ns, samples)
            if min(shape.width, shape.height) < MIN_SIDE_PX:
                raise HoldError(
                    Hold(HoldReason.INPUT_INVALID, camera),
                    f'The picture of {camera} has {shape.width}x{shape.height} pixels; '
                    f'{MIN_SIDE_PX} a side is the least.')
            self._check_shape(camera, state, shape)
            view = _checked_view(camera, samples)
            others = {name: other for name, other in self._cameras.items() if other is not state}
            self._check_view(camera, state, view, others)
            self._check_reference(camera, samples)
            state.own_view = view

    def health(self) -> Hold | None:
        """Return a hold that names the frozen camera, or None."""
        with self._lock:
            for name, state in self._cameras.items():
                if state.frozen:
                    return Hold(HoldReason.INPUT_FROZEN, name)
        return None

    def begin(self) -> None:
        """Take what the cameras show now as their proper views, for a goal that begins."""
        with self._lock:
            for state in self._cameras.values():
                state.begun()

    def follow(self, former: 'CameraWatch') -> None:
        """Continue where another watch left off, with this one's settings."""
        with former._lock, self._lock:
            for name, state in self._cameras.items():
                before = former._cameras[name]
                state.freeze.follow(before.freeze)
                self._cameras[name] = replace(before, freeze=state.freeze, frozen=False)

    # The rest runs with the lock held.

    def _check_shape(self, camera: str, state: _Camera, shape: Shape) -> None:
        state.seen_shape = shape
        if state.strays <= _STRAYS_FORGIVEN:
            state.shapes[shape] += 1
            # The majority decides: the first frame may have been the stray one.
            if shape == max(state.shapes, key=state.shapes.__getitem__):
                return
            state.strays += 1
        raise HoldError(
            Hold(HoldReason.CAMERA_CHANGED, camera),
            f'The pictures of {camera} are not all of one size and encoding, this one is {shape}; '
            'keep the settings of the camera and send a new goal.')

    def _check_view(
        self, camera: str, state: _Camera, view: np.ndarray, others: Mapping[str, _Camera]
    ) -> None:
        for name, other in others.items():
            swapped = False
            if state.own_view is not None and other.own_view is not None:
                as_other = view @ other.own_view
                swapped = (as_other > _OTHERS_VIEW
                           and view @ state.own_view < as_other - _OWN_BEHIND)
            if not swapped:  # then the other camera's next frame is not judged by this one
                state.seen_view = view
            same = other.seen_view is not None and view @ other.seen_view > _SAME_VIEW
            if same or swapped:
                raise HoldError(
                    Hold(HoldReason.CAMERA_CHANGED, camera),
                    f'{camera} shows the view of {name}; swap the cameras back, or look for one '
                    'topic that is published under two names.')

    def _check_reference(self, camera: str, samples: np.ndarray) -> None:
        if camera not in self._references:
            return
        like = likeness(samples, self._references[camera])
        if like < _REFERENCE_VIEW:
            raise HoldError(
                Hold(HoldReason.CAMERA_CHANGED, camera),
                f'The view of {camera} is not that of {camera}_reference (likeness {like:.2f}, '
                f'{_REFERENCE_VIEW} is needed); put the camera back, or save a new reference, '
                'for instance with `ros2 run image_view image_saver`.')


def _checked_view(camera: str, samples: np.ndarray) -> np.ndarray:
    parts = samples.reshape(4, GRID // 4, 4, -1).mean(axis=(1, 3))
    level = parts.mean()
    plain = (np.ptp(parts) < _UNIFORM_PARTS
             and samples.mean(axis=2).std() < _UNIFORM_DEVIATION)
    if (plain and not _BLACK < level < _WHITE) or samples.std(axis=(0, 1)).max() < _ONE_COLOUR:
        raise HoldError(
            Hold(HoldReason.CAMERA_CHANGED, camera),
            f'The picture of {camera} is uniform, at {level:.0f} of 255; uncover the lens '
            'or check exposure and light.')
    return view_of(samples)
