"""Statistics as LeRobot computes them: per episode, then merged by the number of rows.

Two properties are part of the definition and not errors to be mended, since policies are trained
on these numbers: moments are sums in the type of the data, so that a float32 column far from zero
loses digits of its standard deviation, and quantiles of a data set are the mean of those of its
episodes, weighted by their rows, and not its quantiles (lerobot 0.6.1, `compute_stats.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Moments = Mapping[str, np.ndarray]  # min, max, mean, std, count and QUANTILES

QUANTILES = {'q01': 0.01, 'q10': 0.10, 'q50': 0.50, 'q90': 0.90, 'q99': 0.99}
NAMES = ('min', 'max', 'mean', 'std', 'count', *QUANTILES)
_BINS = 5000
_MARGIN = 1e-10
# Pictures: from this side on only every n-th pixel counts, so that about _SIDE_PX are left.
_LARGE_PX, _SIDE_PX = 300, 150


def describe(values: np.ndarray, count: int | None = None) -> dict[str, np.ndarray]:
    """[rows] or [rows, size] -> statistics of each number, [size].

    count: what they count for in a merge; None: as many as there are rows.
    """
    values = values.reshape(len(values), -1)
    if len(values) < 2:
        found = {'min': values.min(0), 'max': values.max(0), 'mean': values.mean(0),
                 'std': values.std(0)}
        found |= {name: found['mean'].copy() for name in QUANTILES}
    else:
        values = values.astype(np.result_type(values.dtype, np.float32), copy=False)
        mean = values.mean(0)
        spread = np.maximum(0, (values**2).mean(0) - mean**2)
        found = {'min': values.min(0), 'max': values.max(0), 'mean': mean, 'std': np.sqrt(spread)}
        columns = [_quantiles(column) for column in values.T]
        found |= {name: np.array([column[place] for column in columns])
                  for place, name in enumerate(QUANTILES)}
    return found | {'count': np.array([len(values) if count is None else count])}


def _quantiles(column: np.ndarray) -> list[float]:
    """Read quantiles off a histogram: linear inside of a bin, the left edge of the first one."""
    margin = column.dtype.type(_MARGIN)
    edges = np.linspace(column.min() - margin, column.max() + margin, _BINS + 1)
    filled = np.cumsum(np.histogram(column, bins=edges)[0])
    found = []
    for share in QUANTILES.values():
        wanted = share * len(column)
        place = int(np.searchsorted(filled, wanted))
        if place == 0:
            found.append(edges[0])
        elif place >= _BINS:
            found.append(edges[-1])
        else:
            inside = (wanted - filled[place - 1]) / (filled[place] - filled[place - 1])
            found.append(edges[place] + inside * (edges[place + 1] - edges[place]))
    return found


def sampled(length: int) -> list[int]:
    """Return which pictures of an episode count: all of a short one, fewer of a longer one."""
    count = max(min(100, length), min(int(length**0.75), 10_000))
    return np.round(np.linspace(0, length - 1, count)).astype(int).tolist()


def thinned(picture: np.ndarray) -> np.ndarray:
    """[H, W, 3] -> the pixels of it that count."""
    height, width = picture.shape[:2]
    longer = max(height, width)
    step = longer // _SIDE_PX if longer >= _LARGE_PX else 1
    return picture[::step, ::step]


def describe_pictures(pictures: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """[H, W, 3] uint8 each, thinned -> statistics of each channel, [3, 1, 1], in 0 to 1."""
    pixels = np.concatenate([picture.reshape(-1, 3) for picture in pictures])
    found = describe(pixels, len(pictures))
    return {name: value if name == 'count' else (value / 255.0).reshape(3, 1, 1)
            for name, value in found.items()}


def merge(parts: Sequence[Moments]) -> dict[str, np.ndarray]:
    """Put the statistics of one feature in several episodes together, weighted by their counts."""
    counts = np.stack([part['count'] for part in parts])
    total = counts.sum(0)
    means = np.stack([part['mean'] for part in parts])
    weights = counts.reshape(len(parts), *[1] * (means.ndim - 1))

    def weighted(values: np.ndarray) -> np.ndarray:
        return (values * weights).sum(0) / total

    mean = weighted(means)
    variance = weighted(np.stack([part['std'] for part in parts])**2 + (means - mean)**2)
    return {
        'min': np.min([part['min'] for part in parts], axis=0),
        'max': np.max([part['max'] for part in parts], axis=0),
        'mean': mean, 'std': np.sqrt(variance), 'count': total,
        **{name: weighted(np.stack([part[name] for part in parts])) for name in QUANTILES}}
