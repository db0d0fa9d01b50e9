"""Names in a ROS graph, without ROS: namespaces, and what a relative name means in one."""

import re

_TOKEN = r'[A-Za-z_][A-Za-z0-9_]*'
_NAMESPACE = re.compile(rf'/?{_TOKEN}(/{_TOKEN})*/?')


def checked_namespace(text: str) -> str:
    """Return a namespace as '/r1', '' for the root. Raises ValueError for what is none."""
    if text.strip('/') == '':
        return ''
    if not _NAMESPACE.fullmatch(text):
        raise ValueError(
            f"'{text}' is no namespace: write letters, digits and underscores, no digit first, "
            'with slashes in between, for example r1 or fleet/r1.')
    return f"/{text.strip('/')}"


def absolute(name: str, namespace: str) -> str:
    """Return what a node in a namespace ('/r1', '' for the root) calls a topic or service."""
    return name if name.startswith('/') else f'{namespace}/{name}'
