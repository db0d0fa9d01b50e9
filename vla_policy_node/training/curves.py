"""Loss curves: `metrics.jsonl`, TensorBoard files and `curves.png`."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from vla_policy_node.outputs.files import write_text

METRICS, PICTURE = 'metrics.jsonl', 'curves.png'
SMOOTHING = 50  # points that one point of a drawn training curve averages


class Curves:
    """Writes the curves of one run; opening it for a resumed run drops what lies beyond."""

    def __init__(self, out: Path, step: int):
        """step: the run goes on after this one."""
        from torch.utils.tensorboard import SummaryWriter

        self._path = out / METRICS
        lines = [line for line in read_metrics(out) if line['step'] <= step]
        write_text(self._path, ''.join(json.dumps(line) + '\n' for line in lines))
        self._file = self._path.open('a', encoding='utf-8', buffering=1)
        self._board = SummaryWriter(str(out / 'tensorboard'), purge_step=step + 1)

    def add(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Log scalars; kind: 'train', 'validation' or 'first_frame'."""
        line = {'kind': kind, 'step': step, **{k: float(f'{v:.5g}') for k, v in values.items()}}
        self._file.write(json.dumps(line) + '\n')
        for name, value in values.items():
            self._board.add_scalar(f'{name}/{kind}', value, step)

    def draw(self) -> None:
        """Write `curves.png` anew."""
        self._file.flush()
        draw_curves(self._path.parent)

    def close(self) -> None:
        """Finish both files."""
        self._file.close()
        self._board.close()


def read_metrics(out: Path) -> list[dict]:
    """Return all complete lines of a run's `metrics.jsonl`, none if there is no such file."""
    path = out / METRICS
    if not path.exists():
        return []
    lines = path.read_text(encoding='utf-8').splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith('\n')]


def draw_curves(out: Path) -> None:
    """Draw every logged quantity over the steps into `out/curves.png`."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    curves = defaultdict(lambda: defaultdict(list))
    for line in read_metrics(out):
        for name, value in line.items():
            if name not in ('kind', 'step'):
                curves[name][line['kind']].append((line['step'], value))
    columns = 4
    rows = -(-len(curves) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(4 * columns, 2.6 * rows), squeeze=False, layout='constrained')
    for axis, (name, kinds) in zip(axes.flat, sorted(curves.items()), strict=False):
        for kind, points in kinds.items():
            steps, values = zip(*_smooth(points, SMOOTHING if kind == 'train' else 1), strict=True)
            axis.plot(steps, values, label=kind.replace('_', ' '), linewidth=1.2)
        axis.set_title(name.replace('_', ' '), fontsize=10)
        axis.set_xlabel('step', fontsize=8)
        axis.tick_params(labelsize=8)
        if min(min(v for _, v in points) for points in kinds.values()) > 0:
            axis.set_yscale('log')
        axis.legend(fontsize=7, frameon=False)
    for axis in axes.flat[len(curves):]:
        axis.set_axis_off()
    figure.savefig(out / PICTURE, dpi=110)
    pyplot.close(figure)


def _smooth(points: list[tuple[int, float]], window: int) -> list[tuple[float, float]]:
    return [
        tuple(sum(column) / len(column) for column in zip(*points[i:i + window], strict=True))
        for i in range(0, len(points), window)
    ]
