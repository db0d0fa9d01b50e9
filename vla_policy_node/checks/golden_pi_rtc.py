"""Recordings of real-time chunking on pi0 and pi0.5: flows that are held to the last chunk.

A and B are LeRobot's, which takes a Jacobian for the identity; V has the true one, as the paper.
The network is differentiated in one pass of both decoders, since a cache cannot be.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checks.findings import Comparison, absolute, compare, relative
from vla_policy_node.checks.golden_decoders import Case
from vla_policy_node.checks.golden_pi_training import prefix_of
from vla_policy_node.families.pi0 import Pi0, PrefixSequence
from vla_policy_node.nn.flow import flow_times, integrate
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.guidance import SCHEDULES, Guidance, guidance_weight, weights

TOLERANCES = {'A': relative(5e-5), 'B': relative(5e-5), 'V': relative(1e-4)}
WEIGHTS, FACTORS = absolute(1e-6), relative(1e-5)
MOST = 1000  # steps and actions


def is_recording(recording: Mapping[str, np.ndarray]) -> bool:
    """Whether these arrays are of real-time chunking."""
    return recording.keys() >= {'prev_chunk_left_over', 'inference_delay', 'A_config'}


def compare_guided(
    network: Pi0, recording: Case, cases: Sequence[Case]
) -> Iterator[Comparison]:
    """Weights of all schedules, and flows from the first recorded inference of as many samples."""
    yield from _compare_weights(recording)
    batch = len(recording['noise'])
    case = next((case for case in cases if len(case['lang_tokens']) == batch), None)
    if case is None:
        yield Comparison('guided flow', np.inf, 0.0, recording.name,
                         f'is of {batch} samples, and the pack has no inference of as many')
        return
    for name in TOLERANCES:
        if f'{name}_config' in recording:
            settings = Entries(json.loads(recording.text(f'{name}_config')), recording.name)
            run = _differentiated if name == 'V' else _guided
            yield from run(network, recording, case, name, settings)


def _compare_weights(recording: Case) -> Iterator[Comparison]:
    if 'weights_args' not in recording:
        return
    arguments = recording['weights_args'].tolist()
    for schedule in SCHEDULES:
        key = f'weights_{schedule}'
        if key not in recording:
            continue
        room = recording[key].shape[1]
        made = torch.stack([
            functional.pad(weights(total, start, end, schedule), (0, room - total))
            for start, end, total in arguments])
        yield from recording.compare('guidance: schedules', WEIGHTS, made, key)


@torch.inference_mode()
def _guided(
    network: Pi0, recording: Case, case: Case, name: str, settings: Entries
) -> Iterator[Comparison]:
    steps, guidance = _guidance(network, recording, settings)
    config, nobody = network.config, ForwardPass()
    sequence, _ = prefix_of(network, case)
    try:
        network.config = replace(config, denoising_steps=steps)
        made = network.denoise(
            network.prefill(sequence, nobody), ForwardPass([guidance]), recording['noise'])
    finally:
        network.config = config
    plain = torch.stack([step.plain for step in guidance.steps])
    factors = torch.stack([step.weight for step in guidance.steps])
    yield from recording.compare('guided flow', TOLERANCES[name], plain, f'{name}_v_base')
    yield from recording.compare(
        'guidance: factors', FACTORS, factors, f'{name}_guidance_weight')
    yield compare('guided flow', TOLERANCES[name], made, recording[f'{name}_x_t'][-1],
                  recording.name)


@torch.inference_mode(False)
@torch.enable_grad()
def _differentiated(
    network: Pi0, recording: Case, case: Case, name: str, settings: Entries
) -> Iterator[Comparison]:
    """As the paper: what the clean estimate does to the target is followed back to the noise."""
    steps, guidance = _guidance(network, recording, settings)
    sequence, _ = prefix_of(network, case)
    noise, seen = recording['noise'].clone(), _Seen(network, sequence, guidance, settings)
    made = integrate(
        seen.velocity, noise, flow_times(steps, network.config.accumulated_time))
    rule = TOLERANCES[name]
    for key, parts in (('v_base', seen.plain), ('correction', seen.corrections)):
        yield from recording.compare(
            'guided flow, differentiated', rule, torch.stack(parts), f'{name}_{key}')
    yield from recording.compare(
        'guidance: factors', FACTORS, torch.stack(seen.factors), f'{name}_guidance_weight')
    yield compare('guided flow, differentiated', rule, made, recording[f'{name}_x_t'][-1],
                  recording.name)


class _Seen:
    """The velocity of the paper, and what it was made of."""

    def __init__(
        self, network: Pi0, sequence: PrefixSequence, guidance: Guidance, settings: Entries
    ):
        self.plain: list[Tensor] = []
        self.corrections: list[Tensor] = []
        self.factors: list[Tensor] = []
        self._network, self._sequence, self._guidance = network, sequence, guidance
        self._limit = settings.number('max_guidance_weight', 0, 1e6)

    def velocity(self, index: int, time: float, x: Tensor) -> Tensor:
        """Of one step."""
        x = x.detach().requires_grad_()
        now = torch.full((len(x),), time, device=x.device)
        plain, _ = self._network.predict(self._sequence, x, now)
        clean = x - time * plain
        missing = self._guidance.missing(clean.detach())
        correction, = torch.autograd.grad(clean, x, missing)
        factor = guidance_weight(now[0], self._limit)
        for parts, part in ((self.plain, plain), (self.corrections, correction),
                            (self.factors, factor)):
            parts.append(part.detach())
        return (plain - factor * correction).detach()


def _guidance(network: Pi0, recording: Case, settings: Entries) -> tuple[int, Guidance]:
    steps = settings.integer('steps', 1, MOST)
    times = flow_times(steps, network.config.accumulated_time)
    return steps, Guidance(
        recording['prev_chunk_left_over'], int(recording['inference_delay']),
        settings.integer('execution_horizon', 1, MOST), times,
        settings.word('schedule', SCHEDULES), settings.number('max_guidance_weight', 0, 1e6))
