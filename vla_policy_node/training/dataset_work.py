"""The hidden folder beside an output in which work on it goes on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vla_policy_node.checkpoints.reading import read_json
from vla_policy_node.outputs.files import write_json
from vla_policy_node.outputs.folder import alone

_RECIPE = 'recipe.json'


def work_folder(out: Path, doing: str) -> Path:
    """Return where the work on an output is, e.g. for doing='importing'."""
    place = out.resolve()
    return place.parent / f'.{place.name}.{doing}'


@contextmanager
def at_work(work: Path, recipe: Mapping, out: Path, episodes: str) -> Iterator[None]:
    """Make the folder, or go on in it; alone, and it goes when all is done.

    recipe: plain values that say from what `out` is made, and how. episodes: pattern of those
    that are finished; without any there is nothing to go on with, so that what was refused can be
    mended and tried again under the same name.
    """
    _begin(work, recipe, out)
    with alone(work):
        try:
            yield
        except BaseException:
            if not any(work.glob(episodes)):
                _end(work)
            raise
        _end(work)


def _begin(work: Path, recipe: Mapping, out: Path) -> None:
    path = work / _RECIPE
    recipe = json.loads(json.dumps(recipe))
    if path.is_file():
        if read_json(path) != recipe:
            raise ValueError(
                f"'{out}' was begun from other data or with other options, and not finished; give "
                f"the same, name another --out, or remove '{work}'.")
        return
    if work.exists() and any(work.iterdir()):
        raise ValueError(f"'{work}' is in the way and was not made here; move it away, or name "
                         'another --out.')
    work.mkdir(parents=True, exist_ok=True)
    write_json(path, recipe)


def _end(work: Path) -> None:
    """Remove the folder; what says that it was made here goes last."""
    for path in sorted(work.rglob('*'), reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        elif path.name != _RECIPE:
            path.unlink()
    (work / _RECIPE).unlink(missing_ok=True)
    work.rmdir()
