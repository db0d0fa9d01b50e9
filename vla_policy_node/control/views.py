"""Similarity of two images, from samples on a grid, regardless of brightness and contrast."""

import numpy as np

# Samples per side that everything here works on; `wire.images` takes them.
GRID = 32
# Parts of a picture that are compared one by one, per side.
_PARTS = 8
# Standard deviation, in grey levels, below which a part shows nothing that could be compared.
_LEAST_TEXTURE = 4.0


def view_of(samples: np.ndarray) -> np.ndarray:
    """Return samples [GRID, GRID, 3] as a vector whose dot products are correlations, -1 to 1.

    All zero for a picture without any contrast: it correlates with nothing.
    """
    cells = samples.reshape(GRID // 2, 2, GRID // 2, 2 * 3).mean(axis=(1, 3)).ravel()
    cells -= cells.mean()
    return cells / max(float(np.linalg.norm(cells)), 1e-9)


def likeness(samples: np.ndarray, reference: np.ndarray) -> float:
    """Return how much of a picture is where it is in the reference, about -1 to 1.

    The correlation that the best quarter of all parts with texture reach: robot and objects may
    move before three quarters of the background, a camera that moves takes all of it along.
    """
    parts, others = _parts(samples), _parts(reference)
    norms = np.linalg.norm(parts, axis=1), np.linalg.norm(others, axis=1)
    textured = np.maximum(*norms) > _LEAST_TEXTURE * np.sqrt(parts.shape[1])
    if not textured.any():
        return 0.0
    correlations = (parts * others).sum(axis=1) / np.maximum(norms[0] * norms[1], 1e-9)
    return float(np.percentile(correlations[textured], 75))


def _parts(samples: np.ndarray) -> np.ndarray:
    """Return the deviations of grey levels from the mean of each part, [parts, samples]."""
    side = GRID // _PARTS
    parts = samples.mean(axis=2).reshape(_PARTS, side, _PARTS, side).swapaxes(1, 2)
    parts = parts.reshape(_PARTS * _PARTS, side * side)
    return parts - parts.mean(axis=1, keepdims=True)
