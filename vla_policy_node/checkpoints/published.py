"""What is known of public checkpoints by their names, and stands in none of their files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# The data of LIBERO as OpenVLA's authors publish it, and as every one of their fine-tuning runs
# names it; its pictures are turned as those of their checkpoints.
_LIBERO_DATA = re.compile(r'libero_(spatial|object|goal|10|90)_no_noops')
LIBERO_TRANSFORM = 'mirror_horizontal'
# Before the name of a checkpoint: its owner. Behind it: the suites that it was fine-tuned on, and
# what tells a copy. Runs of OpenVLA's code are `BASE+DATA+...`, and not what they began with.
_BEFORE, _BEHIND = r'(.*[-_.])?', r'(-(spatial|object|goal|10|90)[^+]*)?'
_CACHED = re.compile(r'models--.+?--')  # what the hub's cache puts before a name


@dataclass(frozen=True)
class PublicCheckpoint:
    """How the authors of a checkpoint run it.

    name: without the suites of LIBERO. head: a family of policies. action_rows: those that the
    head read when the published numbers were measured, '' if there is no choice. transform: what
    turns an upright picture into what training saw; LIBERO's simulator gives pictures upside
    down, and training turned these by half: a mirror image of the upright picture.
    """

    name: str
    head: str
    cameras: int
    chunk_length: int
    action_rows: str = ''
    transform: str = 'none'


_PUBLISHED = (
    PublicCheckpoint('openvla-7b-oft-finetuned-libero', 'l1', 2, 8, 'oft', LIBERO_TRANSFORM),
    PublicCheckpoint('LightVLA-libero', 'l1', 2, 8, 'last56', LIBERO_TRANSFORM),
    PublicCheckpoint('openvla-7b-finetuned-libero', 'autoregressive', 1, 1, '', LIBERO_TRANSFORM),
    PublicCheckpoint('openvla-v01-7b', 'autoregressive', 1, 1),
    PublicCheckpoint('openvla-7b', 'autoregressive', 1, 1),
)


def names_of(directory: Path) -> set[str]:
    """Return what a checkpoint is called: its directory, or its repository in the hub's cache.

    Directories that it lies in may be called after anything, as a run after the model that it
    began with.
    """
    names = set()
    for path in (directory.absolute(), directory.resolve()):
        cached = path.parent.name == 'snapshots' and _CACHED.match(path.parent.parent.name)
        names.add(_CACHED.sub('', (path.parent.parent if cached else path).name, count=1))
    return names


def published(directory: Path) -> PublicCheckpoint | None:
    """Return what is known of a checkpoint by its name."""
    for known in _PUBLISHED:
        if any(re.fullmatch(_BEFORE + known.name + _BEHIND, name, re.IGNORECASE)
               for name in names_of(directory)):
            return known
    return None


def published_action_rows(directory: Path) -> str:
    """Rows a public checkpoint was evaluated with, going by its name, or ''."""
    known = published(directory)
    return known.action_rows if known else ''


def published_transform(directory: Path, statistics_key: str) -> tuple[str, str]:
    """Return what training did with upright pictures, and which public name tells; or '', ''.

    statistics_key: of the data set in use, '' if it is not chosen yet. Whatever a directory is
    called, pictures of other data than LIBERO's are not turned as LIBERO's.
    """
    if _LIBERO_DATA.fullmatch(statistics_key):
        return LIBERO_TRANSFORM, statistics_key
    known = published(directory)
    of_libero = not statistics_key or statistics_key.startswith('libero')
    return (known.transform, known.name) if known and (
        of_libero or known.transform == 'none') else ('', '')
