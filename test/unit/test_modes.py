"""Files that others read have the modes that the umask allows; libraries make some private."""

import os

import pytest
from safetensors.torch import save_file

from vla_policy_node.outputs.files import draft
from vla_policy_node.outputs.whole import whole_folder


@pytest.fixture(params=[0o022, 0o027, 0o077, 0o000], ids=oct)
def mask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return path.stat().st_mode & 0o777


def test_files_and_folders_are_ordinary(tmp_path, mask):
    with draft(tmp_path / 'one') as partial:
        save_file({}, partial)
    assert mode(tmp_path / 'one') == 0o666 & ~mask
    with whole_folder(tmp_path / 'folder', 'a test') as folder:
        (folder / 'below').mkdir(0o700)
        save_file({}, folder / 'below' / 'weights.safetensors')
    for path in (tmp_path / 'folder', *(tmp_path / 'folder').rglob('*')):
        assert mode(path) == (0o777 if path.is_dir() else 0o666) & ~mask, path
    assert os.umask(mask) == mask
