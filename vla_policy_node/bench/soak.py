"""`vla bench soak`: whether a policy node keeps its size over hours of work.

The node gets mixed traffic: cameras, state, goals, cancels, e-stops, parameters, and every kind of
fault that ends by itself. Its memory, threads and descriptors are sampled once a second.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from vla_policy_node.common.code_version import date_and_code
from vla_policy_node.common.terminal import fitted
from vla_policy_node.drawing.palette import BLUE
from vla_policy_node.outputs.folder import claim, seal

COMMAND = 'vla bench soak'  # whose files they are
FIGURES, PLOT = 'soak.json', 'soak.png'
# Caches fill and allocators grow in the beginning.
WARM_UP_SHARE = 0.25
# A slope does not count if it may be chance, or would take months to matter.
CONFIDENCE = 1.96
HARMLESS_MB_H = 1.0


@dataclass(frozen=True)
class ResourceSample:
    """Resources of a process at one moment. at_s: seconds since the beginning."""

    at_s: float
    resident_mb: float
    threads: int
    descriptors: int


@dataclass(frozen=True)
class SoakVerdict:
    """Change of a process over time.

    slope_mb_h: growth of its memory by least squares; error_mb_h: its standard error, which counts
    neighbouring samples as one, as far as they agree.
    """

    minutes: float
    first_mb: float
    last_mb: float
    slope_mb_h: float
    error_mb_h: float
    threads: tuple[int, int]
    descriptors: tuple[int, int]

    @property
    def problems(self) -> list[str]:
        """Return a sentence for everything that grew."""
        found = []
        certain_mb_h = self.slope_mb_h - CONFIDENCE * self.error_mb_h
        if certain_mb_h > HARMLESS_MB_H:
            found.append(f'Memory grows by {self.slope_mb_h:.1f} MB/h, at least '
                         f'{certain_mb_h:.1f} MB/h.')
        for name in ('threads', 'descriptors'):
            first, last = getattr(self, name)
            if last > first:
                found.append(f'There are {last} {name} where there were {first}.')
        return found


def sample(pid: int, since_s: float) -> ResourceSample:
    """Read a process's resources from the kernel. Raises OSError if it has ended."""
    status = dict(line.split(':', 1) for line in
                  Path(f'/proc/{pid}/status').read_text().splitlines() if ':' in line)
    return ResourceSample(
        time.monotonic() - since_s, int(status['VmRSS'].split()[0]) / 1024,
        int(status['Threads']), len(list(Path(f'/proc/{pid}/fd').iterdir())))


def judge(samples: Sequence[ResourceSample]) -> SoakVerdict:
    """Return the change of a process, from samples at even intervals.

    Threads and descriptors come and go with clients, so the minimum of each half counts.
    """
    kept = [s for s in samples if s.at_s >= WARM_UP_SHARE * samples[-1].at_s]
    hours = np.array([s.at_s / 3600 for s in kept])
    memory_mb = np.array([s.resident_mb for s in kept])
    slope, error = _slope(hours, memory_mb)
    half = len(kept) // 2
    return SoakVerdict(
        samples[-1].at_s / 60, float(np.median(memory_mb[:max(1, len(kept) // 10)])),
        float(np.median(memory_mb[-max(1, len(kept) // 10):])), slope, error,
        *((min(getattr(s, name) for s in kept[:half]),
           min(getattr(s, name) for s in kept[half:])) for name in ('threads', 'descriptors')))


def _slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return the slope of y over x and its standard error.

    Memory moves in steps, so neighbouring samples are correlated: with a correlation r of
    residuals one lag apart, n samples are worth n (1 - r) / (1 + r).
    """
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    residuals = y - y.mean() - slope * centred
    variance = float(residuals @ residuals) / len(x)
    if variance == 0.0:
        return slope, 0.0
    r = float(residuals[1:] @ residuals[:-1]) / (variance * len(x))
    worth = max(3.0, len(x) * (1 - r) / (1 + max(r, 0.0)))
    return slope, math.sqrt(variance / (worth - 2.0) / float(centred @ centred / len(x)))


def measure(minutes: float, folder: Path, console: Console) -> list[ResourceSample]:
    """Run a policy node under mixed traffic and return its samples, one a second."""
    from vla_policy_node.bench.live.fault_trials import Live
    from vla_policy_node.system.processes import private_domain

    samples: list[ResourceSample] = []
    with private_domain(), Live(folder) as live, Progress(console=console) as progress:
        task = progress.add_task('soaking', total=minutes * 60)
        pid, since_s = live.child.process.pid, time.monotonic()
        case = 0
        while (spent_s := time.monotonic() - since_s) < minutes * 60:
            verdict = live.run_case(case, 0)
            if live.child.process.pid != pid:
                raise RuntimeError(f'The node did not survive: {verdict.text}')
            case += 1
            if not samples or spent_s - samples[-1].at_s >= 1.0:
                samples.append(sample(pid, since_s))
            progress.update(task, completed=spent_s)
    return samples


def run(minutes: float, out: Path, console: Console) -> bool:
    """Measure, print, write; whether nothing grew. Raises OutputError."""
    claim(out, (FIGURES, PLOT), COMMAND)
    with TemporaryDirectory() as folder:
        samples = measure(minutes, Path(folder), console)
    verdict = judge(samples)
    console.print(fitted(table(verdict)))
    for problem in verdict.problems:
        console.print(problem)
    document = {**date_and_code(), **asdict(verdict), 'problems': verdict.problems,
                'samples': [list(asdict(s).values()) for s in samples]}
    (out / FIGURES).write_text(json.dumps(document) + '\n')
    plot(samples, out / PLOT)
    seal(out, COMMAND, (FIGURES, PLOT))
    return not verdict.problems


def table(verdict: SoakVerdict) -> Table:
    """Return the figures for a terminal."""
    rows = Table(title=f'Policy node under mixed traffic, {verdict.minutes:.0f} min',
                 show_header=False)
    rows.add_row('memory', f'{verdict.first_mb:.1f} to {verdict.last_mb:.1f} MB')
    rows.add_row('slope', f'{verdict.slope_mb_h:+.2f} ± '
                 f'{CONFIDENCE * verdict.error_mb_h:.2f} MB/h')
    rows.add_row('threads', ' to '.join(map(str, verdict.threads)))
    rows.add_row('descriptors', ' to '.join(map(str, verdict.descriptors)))
    return rows


def plot(samples: Sequence[ResourceSample], path: Path) -> None:
    """Draw memory, threads and descriptors over time."""
    from matplotlib.figure import Figure

    figure = Figure((7.0, 4.5), layout='constrained')
    axes = figure.subplots(3, 1, sharex=True)
    minutes = [s.at_s / 60 for s in samples]
    for axis, name, unit in zip(axes, ('resident_mb', 'threads', 'descriptors'),
                                ('MB', 'threads', 'descriptors'), strict=True):
        axis.plot(minutes, [getattr(s, name) for s in samples], linewidth=1.0,
                  color=BLUE)
        axis.set_ylabel(unit)
        axis.set_ylim(bottom=0)
    axes[-1].set_xlabel('min')
    axes[0].set_title(', '.join(date_and_code().values()), fontsize=9)
    figure.savefig(path, dpi=120)
