"""Tells checkpoints apart by what their files hold."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from vla_policy_node.checkpoints import value_files
from vla_policy_node.checkpoints.adapter import adapter_files, place
from vla_policy_node.checkpoints.layout import PARTS, model_files, part_files


def fingerprint(directory: Path) -> str:
    """sha256 over names and contents of weights, config and statistics.

    Contents enter as their own sha256, which a file of the hub's cache has in its name already.
    """
    # A set: a release of CogACT is one file that holds the model and a part of it.
    paths = {place(directory, name) for name in ('config.json', 'dataset_statistics.json')}
    paths |= {*model_files(directory), *adapter_files(directory)}
    paths |= {path for part in PARTS for path in part_files(directory, part)}
    paths |= {*value_files.files(directory)}
    paths |= {*directory.glob('method--*.safetensors')}  # what acceleration methods have learnt
    digest = hashlib.sha256()
    # Wherever the base of an adapter lies, its files come behind those of the adapter.
    for path in sorted(paths, key=lambda path: (not path.is_relative_to(directory), path)):
        if path.is_file():  # OpenVLA before OFT keeps its statistics in config.json
            digest.update(f'{path.name} {_sha256(path)}\n'.encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    blob = path.resolve()
    if blob.parent.name == 'blobs' and re.fullmatch('[0-9a-f]{64}', blob.name):
        return blob.name
    digest = hashlib.sha256()
    with path.open('rb') as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
