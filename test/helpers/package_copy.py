"""A copy of the package with files added to it and nothing else changed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ('vla_policy_node', 'config', 'scripts', 'test')
SHARED = ('README.md', 'checkpoints', 'docs', 'launch', 'pyproject.toml', 'vla_msgs')


def copy_package(folder, files):
    """Copy the package into `folder` and write `files`, (name, content), which must be new."""
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('data'))
    for name in SHARED:
        (folder / name).symlink_to(ROOT / name)
    (folder / 'test' / 'data').symlink_to(ROOT / 'test' / 'data')
    for name, content in files:
        assert not (folder / name).exists(), name
        (folder / name).write_text(content, encoding='utf-8')
    return folder


def run_in(folder, *arguments):
    """Run Python in a copy and return what it printed; its failure is the test's."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={**os.environ, 'PYTHONPATH': str(folder)},
        capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout
