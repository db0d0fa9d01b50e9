"""Page of the package's own message, service and action types, as they are defined."""

from scripts.reference.text import ROOT

HEAD = '''# Messages, services, actions

The types of `vla_msgs`, with their comments.
'''


def page() -> str:
    """Return the page."""
    files = sorted(path for kind in ('msg', 'srv', 'action')
                   for path in (ROOT / 'vla_msgs' / kind).iterdir())
    return HEAD + ''.join(
        f'\n## {path.stem}\n\n`vla_msgs/{path.parent.name}/{path.stem}`\n\n'
        f'```text\n{path.read_text(encoding="utf-8").strip()}\n```\n' for path in files)
