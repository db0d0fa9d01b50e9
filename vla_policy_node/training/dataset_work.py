"""The hidden folder beside an output in which work on it goes on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from vla_policy_node.checkpoints.reading import read_json
from vla_policy_node.outputs.files import write_json

_RECIPE = 'recipe.json'


def work_folder(out: Path, doing: str) -> Path:
    """Return where the work on an output is, e.g. for doing='importing'."""
    place = out.resolve()
    return place.parent / f'.{place.name}.{doing}'


def begin(work: Path, recipe: Mapping, out: Path) -> None:
    """Make the folder, or make sure that what was begun in it was the same.

    recipe: plain values that say from what `out` is made, and how.
    """
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


def end(work: Path) -> None:
    """Remove the folder; what says that it was made here goes last."""
    for path in work.iterdir():
        if path.name != _RECIPE:
            path.unlink()
    (work / _RECIPE).unlink(missing_ok=True)
    work.rmdir()
