"""Write the reference pages into a folder: `python -m scripts.reference FOLDER`."""

import sys
from pathlib import Path

from scripts.reference import api, commands, endpoints, messages, methods, parameters


def pages() -> dict[str, str]:
    """Return each page by its path in the documentation."""
    return {
        'reference/parameters.md': parameters.page(),
        'reference/topics.md': endpoints.page(),
        'reference/messages.md': messages.page(),
        'reference/commands.md': commands.page(),
        'reference/launch.md': commands.launch_page(),
        'reference/methods.md': methods.page(),
        **api.pages(),
    }


def main(folder: Path) -> None:
    """Write all pages, in place of those that are there."""
    for path, text in pages().items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main(Path(sys.argv[1]))
