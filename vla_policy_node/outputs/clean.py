"""Removes what we wrote, for `make clean`: `python -m vla_policy_node.outputs.clean FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from vla_policy_node.outputs.folder import clear
from vla_policy_node.outputs.listing import Listing


def clear_below(folder: Path) -> None:
    """Remove what any command wrote into the folder and the folders in it; links are not entered.

    The folder itself goes if nothing is left.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        clear_below(path)
    listed = Listing.read(folder)
    commands = {entry['by'] for entry in listed.files.values()}
    for by in sorted(commands.union(listed.folders.values(), listed.outputs.values())):
        clear(folder, by)


def main(folders: Sequence[str]) -> None:
    """Clear each folder and say which stay."""
    for folder in map(Path, folders):
        clear_below(folder)
        is_link = folder.is_symlink()
        if not is_link and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        elif is_link or folder.exists():
            print(f"'{folder}' stays: it holds what was not made here.")


if __name__ == '__main__':
    main(sys.argv[1:])
