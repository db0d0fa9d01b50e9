"""Renders the figures of `vla bench policy` as JSON, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from vla_policy_node.bench.policy import (
    STAGES,
    Row,
    action_error,
    floors_ms,
    reference_of,
)
from vla_policy_node.bench.rates import Rates


@dataclass(frozen=True)
class Lines:
    """A table as text, whatever it will be printed on."""

    title: str
    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]

    def rich(self) -> Table:
        """For a terminal."""
        table = Table(title=self.title, title_justify='left')
        for index, name in enumerate(self.head):
            table.add_column(name, justify='left' if index < 2 else 'right')
        for line in self.body:
            table.add_row(*line)
        return table

    def markdown(self) -> str:
        """For a file on GitHub."""
        rule = '|---' * 2 + '|---:' * (len(self.head) - 2) + '|'
        head = ['| ' + ' | '.join(self.head) + ' |', rule]
        lines = ['| ' + ' | '.join(line) + ' |' for line in self.body]
        return '\n'.join([f'{self.title}', '', *head, *lines, ''])


def summarise(row: Row, rows: Sequence[Row], rates: Rates) -> dict:
    """Everything about one row, as plain values."""
    floors = floors_ms(row, rates)
    reference = reference_of(row, rows)
    entry = {
        'method': row.variant.method,
        'way': row.variant.way,
        'dtype': row.variant.dtype,
        'optimisation': row.variant.optimisation,
        'visual_tokens': sum(row.tokens) / len(row.tokens),
        'flops': row.flops,
        'weight_bytes': row.stored['all'],
        'peak_device_bytes': row.peak_bytes,
        'slowest_warm_up_ms': row.slowest_ms,
        'action_error': reference and action_error(row.actions, reference.actions, row.policy),
        'floor_ms': {**floors, 'total': sum(floors.values())},
    }
    if row.stage_ms:
        entry['stage_ms'] = {stage: row.stage(stage) for stage in STAGES}
        entry['total_ms'] = row.total_ms()
    return entry


def variant_table(entries: Sequence[Mapping], title: str) -> Lines:
    """One line per variant; ratios to the floor and to the first line, the baseline."""
    baseline = next((e['total_ms']['p50'] for e in entries if 'total_ms' in e), None)
    cuda = any(entry['peak_device_bytes'] for entry in entries)
    body = []
    for entry in entries:
        total, floor = entry.get('total_ms'), entry['floor_ms']['total']
        body.append((
            f'{entry["method"]}, {entry["way"]}',
            entry['dtype'],
            f'{entry["visual_tokens"]:.0f}',
            f'{total["p50"]:.1f} / {total["p95"]:.1f}' if total else 'not timed',
            f'{floor:.1f}' if total else '',
            f'{total["p50"] / floor:.2f}' if total else '',
            f'{baseline / total["p50"]:.2f}' if total else '',
            f'{sum(entry["flops"].values()) / 1e9:.2f}',
            f'{entry["weight_bytes"] / 1e6:.1f}',
            *((f'{entry["peak_device_bytes"] / 1e6:.0f}',) if cuda else ()),
            _shares(entry['action_error']),
        ))
    return Lines(
        title,
        ('contender', 'dtype', 'tokens', 'p50 / p95 ms', 'floor ms', 'x floor', 'x faster',
         'GFLOP', 'weights MB', *(('peak MB',) if cuda else ()), 'action error mean / max'),
        tuple(body),
    )


def stage_table(entries: Sequence[Mapping], title: str) -> Lines:
    """One line per stage of each variant."""
    body = []
    for entry in entries:
        for stage in STAGES if 'stage_ms' in entry else ():
            times, floor = entry['stage_ms'][stage], entry['floor_ms'].get(stage)
            flops = sum(count for name, count in entry['flops'].items()
                        if name.split()[0] == stage)
            body.append((
                f'{entry["method"]}, {entry["way"]}, {entry["dtype"]}',
                stage,
                f'{times["p50"]:.2f}',
                f'{times["p95"]:.2f}',
                f'{floor:.2f}' if floor else '',
                f'{times["p50"] / floor:.2f}' if floor else '',
                f'{flops / 1e9:.3f}' if flops else '',
            ))
    return Lines(
        title, ('contender', 'stage', 'p50 ms', 'p95 ms', 'floor ms', 'x floor', 'GFLOP'),
        tuple(body),
    )


def camera_table(cameras: Mapping, title: str) -> Lines:
    """Exact and fast preprocessing."""
    pixel, action = cameras['pixel_error'], cameras['action_error']
    changed = {
        'exact': ('0', '0'),
        'fast': (f'{pixel["mean"]:.2f} / {pixel["p99"]:.0f} / {pixel["max"]}',
                 _shares(action)),
    }
    return Lines(
        title,
        ('preprocessing', 'p50 / p95 ms', 'levels of 255, mean / p99 / max',
         'action error mean / max'),
        tuple((kind, f'{ms["p50"]:.1f} / {ms["p95"]:.1f}', *changed[kind])
              for kind, ms in cameras['ms'].items()),
    )


def _shares(error: Mapping[str, float] | None) -> str:
    if error is None:
        return ''
    if not error['max']:
        return '0'
    if error['max'] < 1e-4:
        return '< 0.01 %'
    return f'{error["mean"]:.2%} / {error["max"]:.2%}'


def describe_rates(rates: Rates) -> str:
    """One line: what floors are computed from."""
    products = ', '.join(f'{name} {rate / 1e9:.0f}' for name, rate in rates.flop_s.items())
    return f'Measured at the start: {products} GFLOP/s; memory {rates.byte_s / 1e9:.1f} GB/s'


def markdown(tables: Iterable[Lines], notes: Iterable[str]) -> str:
    """All of it for a file."""
    return '\n'.join([*(f'{note}  ' for note in notes), '', *(t.markdown() for t in tables)])
