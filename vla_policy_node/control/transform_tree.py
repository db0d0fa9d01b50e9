"""The tree of a robot's frames, kept from its transforms: where one frame is as seen from another.

What tf2's buffer does, without history and interpolation: each link is the newest one, and a pose
is as old as the oldest moving link that it was made of. Bounded in frames; one thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from vla_policy_node.control.pairing import REORDER_TOLERANCE_NS

MOST_LINKS = 1000
# A moving link to another parent, of nobody who still says so, is forgotten after this long.
_FORGOTTEN_NS = 10_000_000_000
_UNIT = 0.01  # how far from 1 the length of a quaternion may be
# Static transforms that differ by less were rounded by somebody: m, and 1 - cos of half an angle.
_ROUNDED_M, _ROUNDED_TURN = 1e-3, 5e-7

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]  # x, y, z, w


class TransformError(ValueError):
    """Frames that are no tree, or transforms that are none; one sentence."""


@dataclass(frozen=True, slots=True)
class FrameLink:
    """Where a child frame is in its parent: m, and a rotation. stamp_ns: None if it is static."""

    parent: str
    child: str
    translation: Vector
    rotation: Quaternion
    stamp_ns: int | None


class TransformTree:
    """The newest transform to each frame from each of its parents, of which it should have one."""

    def __init__(self) -> None:
        self._links: dict[str, dict[str, FrameLink]] = {}
        self._count = 0
        self._contradicted: set[tuple[str, str]] = set()  # static links with two values

    @property
    def frames(self) -> list[str]:
        """All frames by name."""
        return sorted({*self._links, *(parent for links in self._links.values()
                                       for parent in links)})

    def put(self, link: FrameLink) -> None:
        """Take a transform; one that was overtaken is dropped.

        A stamp far before the known one means that the clock went back: all that moved is
        forgotten. Raises TransformError for more links than any robot has.
        """
        known = self._links.get(link.child, {}).get(link.parent)
        if known is not None and known.stamp_ns is not None:
            if link.stamp_ns is None:
                return  # it moves, whatever somebody else says
            if link.stamp_ns < known.stamp_ns - REORDER_TOLERANCE_NS:
                self._forget(lambda other: other.stamp_ns is not None)
            elif link.stamp_ns < known.stamp_ns:
                return
        elif known is not None and link.stamp_ns is None and _are_apart(known, link):
            self._contradicted.add((link.parent, link.child))
        elif link.stamp_ns is not None:
            self._contradicted.discard((link.parent, link.child))  # it moves
        if link.parent not in self._links.get(link.child, {}):
            if self._count >= MOST_LINKS:
                raise TransformError(
                    f'There are more than {MOST_LINKS} transforms between frames; name a topic '
                    'with those of the robot alone.')
            self._count += 1
        links = self._links.setdefault(link.child, {})
        links[link.parent] = link
        if len(links) > 1 and (now_ns := link.stamp_ns) is not None:
            self._forget(lambda other: other.child == link.child and other.stamp_ns is not None
                         and other.stamp_ns < now_ns - _FORGOTTEN_NS)

    def look(self, parent: str, child: str) -> tuple[int, Vector, Quaternion] | None:
        """Return stamp [ns], position [m] and rotation of the child as the parent sees it.

        None if nothing connects the two. The stamp is that of the oldest moving link. Raises
        TransformError for frames in a loop, a frame with two parents, a static transform with two
        values and one that is none, if they lie between the two; and if nothing there moves.
        """
        ours, reached, trouble = self._up(child, {parent})
        if not reached:
            theirs, reached, more = self._up(parent, {child, *(link.parent for link in ours)})
            if not reached:
                if trouble or more:
                    raise trouble or more  # type: ignore[misc]
                return None
            top = theirs[-1].parent if theirs else parent
            ours = ours[:next((i + 1 for i, link in enumerate(ours) if link.parent == top), 0)]
        else:
            theirs = []
        for link in (*ours, *theirs):
            if (link.parent, link.child) in self._contradicted:
                raise TransformError(
                    f"The static transform from '{shown(link.parent)}' to '{shown(link.child)}' "
                    'came with two values; stop one of its publishers, and configure anew.')
        stamps = [link.stamp_ns for link in (*ours, *theirs) if link.stamp_ns is not None]
        if not stamps:
            raise TransformError(
                f"Nothing moves between the frames '{shown(parent)}' and '{shown(child)}': all "
                'transforms are static; name the frames of an arm.')
        position, rotation = _along(ours)
        if theirs:
            base, turned = _along(theirs)
            back = _inverse(turned)
            offset = (position[0] - base[0], position[1] - base[1], position[2] - base[2])
            position, rotation = _turn(back, offset), _times(back, rotation)
        return min(stamps), position, rotation

    def _up(
        self, frame: str, until: set[str]
    ) -> tuple[list[FrameLink], bool, TransformError | None]:
        """Return the links from a frame up to one of others, whether it is there, or why not."""
        path: list[FrameLink] = []
        seen = {frame}
        while frame not in until:
            links = self._links.get(frame)
            if not links:
                return path, False, None
            if len(links) > 1:
                first, second = sorted(links)[:2]
                return path, False, TransformError(
                    f"The frame '{shown(frame)}' has two parents in the transforms, "
                    f"'{shown(first)}' and '{shown(second)}'; stop one of their publishers.")
            (link,) = links.values()
            path.append(link)
            frame = link.parent
            if frame in seen:
                return path, False, TransformError(
                    f"The transforms lead in a loop through the frame '{shown(frame)}'; mend "
                    'their publisher.')
            seen.add(frame)
        return path, True, None

    def _forget(self, which: Callable[[FrameLink], bool]) -> None:
        for child, links in [*self._links.items()]:
            kept = {parent: link for parent, link in links.items() if not which(link)}
            self._count -= len(links) - len(kept)
            if kept:
                self._links[child] = kept
            else:
                del self._links[child]


def shown(frame: str) -> str:
    """Return the name of a frame, which may come from anybody, as a sentence may hold it."""
    return repr(frame[:60])[1:-1]


def _are_apart(a: FrameLink, b: FrameLink) -> bool:
    """Return whether two transforms differ; false comparisons are those with NaN."""
    alike = abs(sum(x * y for x, y in zip(a.rotation, b.rotation, strict=True)))
    return not (math.dist(a.translation, b.translation) <= _ROUNDED_M
                and alike >= 1.0 - _ROUNDED_TURN)


def _along(path: list[FrameLink]) -> tuple[Vector, Quaternion]:
    """Return where the first child of a path is in the last parent."""
    position: Vector = (0.0, 0.0, 0.0)
    rotation: Quaternion = (0.0, 0.0, 0.0, 1.0)
    for link in path:
        length = math.hypot(*link.rotation)
        if not (abs(length - 1.0) < _UNIT and all(map(math.isfinite, link.translation))):
            raise TransformError(
                f"The transform from '{shown(link.parent)}' to '{shown(link.child)}' is not "
                'finite or its quaternion has not length 1; mend its publisher.')
        x, y, z, w = link.rotation
        turn = (x / length, y / length, z / length, w / length)
        turned = _turn(turn, position)
        shift = link.translation
        position = (turned[0] + shift[0], turned[1] + shift[1], turned[2] + shift[2])
        rotation = _times(turn, rotation)
    return position, rotation


def _times(a: Quaternion, b: Quaternion) -> Quaternion:
    ax, ay, az, aw = a
    bx, by, bz, bw = b
    return (aw * bx + ax * bw + ay * bz - az * by, aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw, aw * bw - ax * bx - ay * by - az * bz)


def _inverse(a: Quaternion) -> Quaternion:
    return -a[0], -a[1], -a[2], a[3]


def _turn(rotation: Quaternion, vector: Vector) -> Vector:
    x, y, z, _ = _times(_times(rotation, (*vector, 0.0)), _inverse(rotation))
    return x, y, z
