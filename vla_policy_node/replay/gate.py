"""Thresholds that turn a replay into a test with an exit code."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# unit -> kind of dimension, and its size in SI units
_UNITS = {'m': ('translation', 1.0), 'mm': ('translation', 1e-3),
          'rad': ('rotation', 1.0), 'mrad': ('rotation', 1e-3),
          'deg': ('rotation', math.pi / 180)}


@dataclass(frozen=True)
class ErrorLimit:
    """Largest allowed action error of one kind of dimension; text is as the user wrote it."""

    text: str
    kind: str
    limit: float


@dataclass(frozen=True)
class GateLimits:
    """GateLimits of `--max-error`, `--max-p95-ms` and `--min-agreement`; None: not given."""

    errors: tuple[ErrorLimit, ...] = ()
    p95_ms: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class GateVerdict:
    """One limit and its outcome; measured is NaN where the bag has nothing to compare."""

    what: str
    measured: float
    limit: float
    unit: str
    passed: bool

    @property
    def text(self) -> str:
        """One line for a person."""
        found = 'nothing to compare with' if math.isnan(self.measured) else (
            f'{self.measured:.4g} {self.unit}'.strip())
        return f'{self.what}: {found}, limit {self.limit:.4g} {self.unit}'.strip()


def parse_error_limit(text: str) -> ErrorLimit:
    """Read '2mm', '0.5deg' or '10 mrad'; ValueError for anything else."""
    match = re.fullmatch(r'\s*([0-9.eE+-]+)\s*([a-z]+)\s*', text)
    try:
        number = float(match[1])
        kind, scale = _UNITS[match[2]]
    except (TypeError, ValueError, KeyError):
        number = math.nan
    if not number >= 0:
        raise ValueError(f"--max-error is '{text}'; write a length or an angle per control "
                         f'period with its unit ({", ".join(_UNITS)}), e.g. 2mm or 0.5deg.')
    return ErrorLimit(text.strip(), kind, number * scale)


def judge(limits: GateLimits, report: Mapping, latency: Mapping) -> list[GateVerdict]:
    """Compare figures with limits.

    Errors and agreement are those between the two policies where there are two, else those to the
    bag's actions; the error is the 95th percentile of the worst axis. p95 is that of config A.
    """
    compared = report.get('difference') or report['a'].get('actions') or {}
    reference = 'the two policies' if report.get('difference') else "policy and bag's actions"
    verdicts = []
    for error in limits.errors:
        axes = [row['p95'] for row in compared.get('error', ()) if row['kind'] == error.kind]
        measured = _worst(axes)
        unit, scale = ('mm', 1e3) if error.kind == 'translation' else ('mrad', 1e3)
        verdicts.append(GateVerdict(
            f'{error.kind} error between {reference}, 95th percentile of the worst axis',
            measured * scale, error.limit * scale, unit, measured <= error.limit))
    if limits.agreement is not None:
        measured = compared.get('gripper', {}).get('agreement')
        measured = math.nan if measured is None else measured
        verdicts.append(GateVerdict(
            f'gripper agreement of {reference}', 100 * measured, 100 * limits.agreement, '%',
            measured >= limits.agreement))
    if limits.p95_ms is not None:
        measured = latency['a']['total']['p95']
        measured = math.nan if measured is None else measured
        verdicts.append(GateVerdict(f'inference of {report["a"]["label"]}, p95', measured,
                                    limits.p95_ms, 'ms', measured <= limits.p95_ms))
    return verdicts


def _worst(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return max(known) if known else math.nan
