"""What is known of public checkpoints by their names, and stands in none of their files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# The data of LIBERO as OpenVLA's authors publish it, and as every one of their fine-tuning runs
# names it; its pictures are turned as those of their checkpoints.
_LIBERO_DATA = re.compile(r'libero_(spatial|object|goal|10|90)_no_noops')
LIBERO_TRANSFORM = 'mirror_horizontal'


@dataclass(frozen=True)
class PublicCheckpoint:
    """How the authors of a checkpoint run it.

    name: what of a path tells. head: a family of policies. action_rows: those that the head read
    when the published numbers were measured, '' if there is no choice. transform: what turns an
    upright picture into what training saw; LIBERO's simulator gives pictures upside down, and
    training turned these by half: a mirror image of the upright picture.
    """

    name: str
    head: str
    cameras: int
    chunk_length: int
    action_rows: str = ''
    transform: str = 'none'

    @property
    def label(self) -> str:
        """What of the name was recognised, for people."""
        return self.name.removesuffix('$').replace('(v01-)?', '')


# The first that fits; `$` is the end of a directory's name.
_PUBLISHED = (
    PublicCheckpoint(r'openvla-7b-oft-finetuned-libero', 'l1', 2, 8, 'oft', LIBERO_TRANSFORM),
    PublicCheckpoint(r'lightvla-libero', 'l1', 2, 8, 'last56', LIBERO_TRANSFORM),
    PublicCheckpoint(r'openvla-7b-finetuned-libero', 'autoregressive', 1, 1, '', LIBERO_TRANSFORM),
    PublicCheckpoint(r'openvla-(v01-)?7b$', 'autoregressive', 1, 1),
)


def published(directory: Path) -> PublicCheckpoint | None:
    """Return what is known of a checkpoint by the name of its directory, or one it lies in."""
    for part in reversed(directory.absolute().parts):
        for known in _PUBLISHED:
            if re.search(known.name, part, re.IGNORECASE):
                return known
    return None


def published_action_rows(directory: Path) -> str:
    """Rows a public checkpoint was evaluated with, going by its name, or ''."""
    known = published(directory)
    return known.action_rows if known else ''


def published_transform(directory: Path, statistics_key: str) -> tuple[str, str]:
    """Return what training did with upright pictures, and which public name tells; or '', ''."""
    known = published(directory)
    if known:
        return known.transform, known.label
    if _LIBERO_DATA.fullmatch(statistics_key):
        return LIBERO_TRANSFORM, statistics_key
    return '', ''
