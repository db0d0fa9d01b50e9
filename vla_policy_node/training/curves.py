"""Loss curves: `metrics.jsonl`, TensorBoard files and `curves.png`."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from vla_policy_node.common.code_version import date_and_code
from vla_policy_node.drawing.palette import BLUE, GREY, VERMILION
from vla_policy_node.outputs.files import write_text

METRICS, PICTURE = 'metrics.jsonl', 'curves.png'
_DRAWN_POINTS = 60  # of a training curve; each averages what lies between
_COLUMNS = 3
_DECADE = 6
# The kinds also differ in their lines.
_STYLES = {'train': (GREY, '-'), 'validation': (BLUE, '-'), 'first_frame': (VERMILION, '--')}
_UNITS = {
    'action': 'L1, of the range', 'action_xyz': 'L1, of the range',
    'action_gripper': 'L1, of the range', 'point_mm': 'mm', 'readout_mm': 'mm',
    'token': 'nats', 'attend': 'nats', 'tokens': 'kept'}


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
        out = self._path.parent
        draw_curves(out, ', '.join([out.resolve().name, *date_and_code().values()]))

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


def draw_curves(out: Path, title: str = '') -> None:
    """Draw every logged quantity over the steps into `out/curves.png`.

    title: which run it is, when and with which code.
    """
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    curves = defaultdict(lambda: defaultdict(list))
    for line in read_metrics(out):
        for name, value in line.items():
            if name not in ('kind', 'step'):
                curves[name][line['kind']].append((line['step'], value))
    rows = -(-len(curves) // _COLUMNS)
    figure, axes = pyplot.subplots(
        rows, _COLUMNS, figsize=(9.2, 2.1 * rows + 0.5), squeeze=False, layout='constrained')
    lines = {}
    for axis, (name, kinds) in zip(axes.flat, sorted(curves.items()), strict=False):
        for kind, points in kinds.items():
            window = -(-len(points) // _DRAWN_POINTS) if kind == 'train' else 1
            colour, style = _STYLES.get(kind, ('#000000', ':'))
            steps, values = zip(*_smooth(points, window), strict=True)
            (lines[kind],) = axis.plot(
                steps, values, style, color=colour, linewidth=1.3,
                marker='.' if len(steps) == 1 else '')
        unit = f', {_UNITS[name]}' if name in _UNITS else ''
        axis.set_title(f'{name.replace("_", " ").removesuffix(" mm")}{unit}', fontsize=9.5)
        axis.set_xlabel('step', fontsize=8.5)
        low, high = axis.dataLim.intervaly
        if low > 0:
            axis.set_yscale('log')
            axis.yaxis.set_major_formatter('{x:g}')
            if high < _DECADE * low:  # else labels between the powers of ten cover each other
                axis.yaxis.set_minor_formatter('{x:g}')
            else:
                axis.yaxis.set_minor_formatter('')
        axis.tick_params(which='both', labelsize=8)
    for axis in axes.flat[len(curves):]:
        axis.set_axis_off()
    # One legend for all; outside of the panels would take matplotlib 3.7.
    axes.flat[0].legend(
        lines.values(), [kind.replace('_', ' ') for kind in lines], fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=9)
    figure.savefig(out / PICTURE, dpi=110)
    pyplot.close(figure)


def _smooth(points: list[tuple[int, float]], window: int) -> list[tuple[float, float]]:
    return [
        tuple(sum(column) / len(column) for column in zip(*points[i:i + window], strict=True))
        for i in range(0, len(points), window)
    ]
