"""`vla bench policy`: where the time of an inference goes, and how much of it is unavoidable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from vla_policy_node.bench.policy_variants import PolicyCache, PolicyVariant
from vla_policy_node.bench.public_structure import wasted_flops
from vla_policy_node.bench.random_policy import stored_bytes
from vla_policy_node.bench.rates import Rates
from vla_policy_node.compression.quantise import INT4_SHARE
from vla_policy_node.control.latency import percentiles
from vla_policy_node.encoding.preprocess import PREPROCESSING, jpeg_round_trip, resize
from vla_policy_node.families import PolicyNetwork, count_flops, sequence_rows
from vla_policy_node.families.prismatic_config import PrismaticConfig
from vla_policy_node.policy.interface import ActionChunk, InferenceRequest, Observation
from vla_policy_node.policy.local import LocalPolicy

# Parts of a network that do not look at pictures.
NO_VISION = ('language_model', 'action_head', 'proprio_projector', 'noisy_action_projector')
STAGES = ('upload', 'vision', 'select', 'language_model', 'head')


@dataclass
class Row:
    """One variant and its measurements. stage_ms: of each timed inference.

    flops, stored: by stage, FLOPs of the last inference and bytes of weights it read.
    actions: one chunk per observation, [K, D] each. slowest_ms: of the warm-up inferences,
        including capture and compilation.
    """

    variant: PolicyVariant
    policy: LocalPolicy
    flops: dict[str, int]
    stored: dict[str, int]
    actions: list[np.ndarray] = field(default_factory=list)
    stage_ms: list[dict[str, float]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    peak_bytes: int = 0
    slowest_ms: float = 0.0

    def total_ms(self) -> dict[str, float]:
        """p50, p95, p99 from pictures of the encoders' size to actions, both on the host."""
        return percentiles([sum(run[s] for s in STAGES) for run in self.stage_ms])

    def stage(self, name: str) -> dict[str, float]:
        """The same of one stage."""
        return percentiles([run[name] for run in self.stage_ms])


def load_rows(
    cache: PolicyCache, variants: Sequence[PolicyVariant], console: Console
) -> list[Row]:
    """Load every variant that fits; report those that do not."""
    rows = []
    for variant in variants:
        try:
            policy = cache.policy(variant)
        except (ValueError, torch.OutOfMemoryError) as error:
            _leave_out(variant, error, console)
            continue
        stored = _stored(cache.network(variant))
        if variant.imitates_int4:
            stored['all'] -= round((1 - INT4_SHARE) * stored['language_model'])
        rows.append(Row(variant, policy, {}, stored))
    return rows


def run_rows(
    rows: Sequence[Row], observations: Sequence[Observation], repetitions: int, warm_up: int,
    console: Console,
) -> list[Row]:
    """Run all rows in turn, so that a machine that slows down affects all of them.

    Returns the rows that ran; a row that needs too much memory is left out.
    """
    done = []
    with Progress(console=console, transient=True) as progress:
        for row in progress.track(rows, description='warming up'):
            try:
                _warm_up(row, observations, warm_up)
            except torch.OutOfMemoryError as error:
                _leave_out(row.variant, error, console)
            else:
                done.append(row)
        timed = [row for row in done if row.variant.timed]
        for repetition in progress.track(range(repetitions), description='measuring'):
            observation = observations[repetition % len(observations)]
            for row in timed:
                row.stage_ms.append(row.policy.infer(InferenceRequest(observation)).stage_ms)
    return done


def _warm_up(row: Row, observations: Sequence[Observation], repetitions: int) -> None:
    """Infer from every observation, and record what does not depend on time."""
    for observation in observations:
        for _ in range(repetitions):  # each observation may be the first of its bucket
            chunk = row.policy.infer(InferenceRequest(observation))
            row.slowest_ms = max(row.slowest_ms, sum(chunk.stage_ms.values()))
        chunk = _infer(row, observation)
        row.actions.append(chunk.actions)
        row.tokens.append(chunk.tokens_kept)
    row.flops = _flops(row, chunk, observations[-1])


def _leave_out(variant: PolicyVariant, error: Exception, console: Console) -> None:
    reason = str(error).splitlines()[0]
    console.print(f'Left out: {variant.name}, {variant.dtype}: {reason}')


def action_error(actions: Sequence[np.ndarray], reference: Sequence[np.ndarray],
                 policy: LocalPolicy) -> dict[str, float]:
    """Mean and largest difference, as shares of each dimension's range in the training data."""
    low, high = (np.array(end) for end in policy.description.action_range)
    errors = np.abs(np.stack(actions) - np.stack(reference)) / (high - low)
    return {'mean': float(errors.mean()), 'max': float(errors.max())}


def reference_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """The row of the plain network with the same method in the bench's dtype, if there is one."""
    dtype = 'bfloat16' if _on_cuda(row) else 'float32'
    wanted = row.variant.method, 'plain', dtype
    return next((other for other in rows if wanted == (
        other.variant.method, other.variant.way, other.variant.dtype)), None)


def floors_ms(row: Row, rates: Rates) -> dict[str, float]:
    """The floor of each stage that has one; the baseline's wasted work is not included."""
    dtype = row.variant.dtype
    return {
        stage: rates.floor_ms(
            row.flops[stage], row.stored[stage],
            # Vision encoders and language model have 8-bit products; the projector, 9 % of vision,
            # does not.
            dtype if dtype != 'float8' or stage in ('vision', 'language_model') else 'bfloat16')
        for stage in ('vision', 'select', 'language_model', 'head')
    }


def measure_cameras(
    cache: PolicyCache, variant: PolicyVariant, observations: Sequence[Observation],
    repetitions: int,
) -> dict[str, dict]:
    """Time both kinds of preprocessing on camera pictures, and what `fast` changes."""
    policies = {kind: cache.policy(variant, kind) for kind in PREPROCESSING}
    times: dict[str, list[float]] = {kind: [] for kind in PREPROCESSING}
    actions: dict[str, list[np.ndarray]] = {kind: [] for kind in PREPROCESSING}
    for repetition in range(max(repetitions, len(observations))):
        observation = observations[repetition % len(observations)]
        for kind, policy in policies.items():
            chunk = policy.infer(InferenceRequest(observation))
            times[kind].append(chunk.stage_ms['preprocess'])
            if repetition < len(observations):
                actions[kind].append(chunk.actions)
    pictures = {
        kind: np.stack([[policy.inputs.preprocessor.picture(observation.images[camera])
                         for camera in policy.description.spec.cameras]
                        for observation in observations]).astype(int)
        for kind, policy in policies.items()
    }
    levels = np.abs(pictures['fast'] - pictures['exact'])
    return {
        'ms': {kind: percentiles(values) for kind, values in times.items()},
        'pixel_error': {'mean': float(levels.mean()), 'p99': float(np.percentile(levels, 99)),
                        'max': int(levels.max())},
        'action_error': action_error(actions['fast'], actions['exact'], policies['exact']),
    }


def shrink(observations: Sequence[Observation], side: int) -> list[Observation]:
    """The same observations as a camera of the vision encoders' resolution would give them."""
    return [
        replace(observation, images={
            camera: resize(jpeg_round_trip(image), side)
            for camera, image in observation.images.items()})
        for observation in observations
    ]


def _infer(row: Row, observation: Observation) -> ActionChunk:
    """One inference, with the peak device memory of it and its weights."""
    if not _on_cuda(row):
        return row.policy.infer(InferenceRequest(observation))
    torch.cuda.reset_peak_memory_stats()
    others = torch.cuda.memory_allocated() - row.stored['all']
    chunk = row.policy.infer(InferenceRequest(observation))
    row.peak_bytes = torch.cuda.max_memory_allocated() - others
    return chunk


def _on_cuda(row: Row) -> bool:
    return row.policy.description.device.startswith('cuda')


def _flops(row: Row, chunk: ActionChunk, observation: Observation) -> dict[str, int]:
    """FLOPs by stage for the rows that are needed: padding rows of a bucket are overhead."""
    config = row.policy.config
    dropped = chunk.tokens_total - chunk.tokens_kept
    prompt_ids = row.policy.inputs.encode_prompt(observation.instruction)
    length = sequence_rows(config, len(prompt_ids)) - dropped
    flops = count_flops(config, [length] * config.language_model.layers)
    network = count_flops(config, row.policy.layer_rows)
    flops['select'] = chunk.flops - sum(network.values())
    if row.variant.public:
        assert isinstance(config, PrismaticConfig)  # of which alone there is a public variant
        for stage, count in wasted_flops(config, length).items():
            flops[f'{stage} wasted'] = count
    return flops


def _stored(network: PolicyNetwork) -> dict[str, int]:
    parts = dict(network.named_children())
    decoder = parts['language_model']
    return {
        'vision': sum(stored_bytes(part) for name, part in parts.items() if name not in NO_VISION),
        'select': 0,
        'language_model': stored_bytes(decoder.layers) + stored_bytes(decoder.norm),
        'head': stored_bytes(parts['action_head']),
        'all': stored_bytes(network),
    }
