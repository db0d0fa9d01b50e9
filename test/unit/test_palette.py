"""Colours that mean something can be told apart with any kind of colour vision."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from vla_policy_node.drawing import palette

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
SEEN_BY = {
    'all': np.eye(3),
    'protanopia': np.array([[0.152286, 1.052583, -0.204868],
                            [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]]),
    'deuteranopia': np.array([[0.367322, 0.860646, -0.227968],
                              [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]),
    'tritanopia': np.array([[1.255528, -0.076749, -0.178779],
                            [-0.078411, 0.930809, 0.147602],
                            [0.004733, 0.691367, 0.303900]]),
}
SHOWN_TOGETHER = [*palette.POLICIES, palette.RECORDED, palette.APART]
APART = 20.0  # CIE76; a just noticeable difference is about 2.3
CONTRAST = 3.0  # of graphics: WCAG 1.4.11


def linear(colour):
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def to_lab(rgb):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722],
                    [0.0193, 0.1192, 0.9505]]) @ rgb / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(rgb, paper):
    light, dark = sorted((0.05 + np.dot([0.2126, 0.7152, 0.0722], c) for c in (rgb, paper)),
                         reverse=True)
    return light / dark


@pytest.mark.parametrize('eye', SEEN_BY)
def test_what_a_chart_compares_can_be_told_apart(eye):
    for one, other in combinations(SHOWN_TOGETHER, 2):
        labs = [to_lab(np.clip(SEEN_BY[eye] @ linear(c), 0, 1)) for c in (one, other)]
        assert np.linalg.norm(labs[0] - labs[1]) > APART, (one, other)


@pytest.mark.parametrize('eye', SEEN_BY)
@pytest.mark.parametrize('is_dark', [False, True])
def test_lines_stand_out_from_the_paper_in_light_and_dark(eye, is_dark):
    """On a dark page the browser shows charts through `invert(.9) hue-rotate(180deg)`."""
    hue = np.array([[-0.574, 1.430, 0.144], [0.426, 0.430, 0.144], [0.426, 1.430, -0.856]])

    def shown(colour):
        if is_dark:
            colour = np.clip(hue @ (0.1 * np.array(to_rgb(colour))
                                    + 0.9 * (1 - np.array(to_rgb(colour)))), 0, 1)
        return np.clip(SEEN_BY[eye] @ linear(colour), 0, 1)

    for colour in SHOWN_TOGETHER:
        assert contrast(shown(colour), shown('white')) > CONTRAST, colour
