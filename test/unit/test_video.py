"""Overlay videos open again with every picture in them."""

import cv2
import numpy as np
import pytest
from PIL import Image

from vla_policy_node.drawing.video import OverlayVideo

PICTURES = [np.full((61, 83, 3), level, np.uint8) for level in (20, 120, 220)]


def write(path):
    with OverlayVideo(path, fps=20) as video:
        for picture in PICTURES:
            video.add(picture)


@pytest.mark.parametrize('suffix', ['.gif', '.webp'])
def test_a_page_video_holds_every_picture_at_its_pace(tmp_path, suffix):
    path = tmp_path / 'made' / f'episode{suffix}'
    write(path)
    with Image.open(path) as video:
        assert (video.n_frames, video.size) == (3, (82, 60))
        for index, picture in enumerate(PICTURES):
            video.seek(index)
            pixels = np.asarray(video.convert('RGB')).astype(int)
            assert video.info['duration'] == 50
            assert np.abs(pixels - picture[0, 0]).max() < 6


def test_an_mp4_holds_every_picture(tmp_path):
    path = tmp_path / 'episode.mp4'
    write(path)
    video = cv2.VideoCapture(str(path))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(20)
    for picture in PICTURES:
        found, pixels = video.read()
        assert found
        assert abs(int(pixels.mean()) - int(picture[0, 0, 0])) < 6
    assert not video.read()[0]


def test_a_picture_of_another_size_is_refused(tmp_path):
    with OverlayVideo(tmp_path / 'a.gif', fps=20) as video:
        video.add(PICTURES[0])
        with pytest.raises(ValueError, match=r'pictures of \(82, 60\) pixels, not \(40, 60\)'):
            video.add(PICTURES[0][:, :40])


def test_an_unknown_kind_of_file_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"not '\.avi'"):
        OverlayVideo(tmp_path / 'a.avi', fps=20)


def test_a_video_without_pictures_leaves_no_file(tmp_path):
    with OverlayVideo(tmp_path / 'a.gif', fps=20):
        pass
    assert not (tmp_path / 'a.gif').exists()
