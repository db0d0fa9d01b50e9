"""Recorded flows of SmolVLA: the expert in every step, also held to the chunk before (RTC)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.statistics import Statistics
from vla_policy_node.checks.findings import Comparison, exact
from vla_policy_node.checks.golden_decoders import FLOAT, Case
from vla_policy_node.families.smolvla import SmolVla
from vla_policy_node.nn.denoising import DenoisingStep
from vla_policy_node.nn.flow import FlowStep, embed_time, flow_times
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.guidance import SCHEDULES, Guidance
from vla_policy_node.nn.hooks import PassHooks
from vla_policy_node.nn.sequence import TokenSequence

MOST_ACTIONS = 1000


def compare_flow(
    network: SmolVla, statistics: Statistics, sequence: TokenSequence, case: Case,
    guided: Entries,
) -> Iterator[Comparison]:
    """Every step from recorded noise to actions of the robot; guided: settings of RTC."""
    head, watch, steps = network.action_head, _Watch(), network.config.denoising_steps
    times = torch.tensor(flow_times(steps))
    yield from case.compare('times', FLOAT, times, 'times')
    yield from case.compare('time embedding', FLOAT, embed_time(
        times, network.config.expert_width, network.config.periods), 'time_embedding')
    context, noise = network.prefill(sequence, ForwardPass()), case['noise']
    guidance = _guidance(case, guided, flow_times(steps))
    norms = [layer.get_submodule('input_layernorm') for layer in head.expert.layers]
    with _Inputs(norms) as inputs:
        actions = network.denoise(context, noise, ForwardPass([watch, *guidance]))
    places = context.behind[:, None] + torch.arange(noise.shape[1], device=noise.device)
    yield from case.compare('expert: positions', exact, places, 'suffix_position_ids')
    yield from case.compare(
        'expert: rows of every step', FLOAT, torch.stack(watch.rows), 'suffix_embs')
    first = torch.stack(inputs[: len(head.expert.layers)])
    yield from case.compare(
        'expert: every layer', FLOAT, first, 'suffix_layer_inputs_step0')
    yield from case.compare('flow: noisy actions', FLOAT, torch.stack(watch.actions), 'x_t')
    yield from case.compare('flow: velocity', FLOAT, torch.stack(watch.velocities), 'v_t')
    for one in guidance:
        yield from _compare_guidance(one, case)
    cut = actions[..., : network.config.action_size]
    yield from case.compare('normalised actions', FLOAT, cut, 'actions_normalized')
    robot = statistics.unnormalise_actions(cut.double().cpu().numpy())
    yield from case.compare('actions', FLOAT, torch.from_numpy(robot), 'actions')


def _guidance(case: Case, settings: Entries, times: list[float]) -> list[Guidance]:
    """What held the flow to the chunk before, if anything did."""
    if 'rtc_left_over' not in case:
        return []
    return [Guidance(
        case['rtc_left_over'], int(case['rtc_delay']),
        settings.integer('execution_horizon', 1, MOST_ACTIONS), times,
        settings.word('prefix_attention_schedule', SCHEDULES),
        settings.number('max_guidance_weight', 0, 1e6))]


def _compare_guidance(guidance: Guidance, case: Case) -> Iterator[Comparison]:
    for key, part in (('rtc_guidance_weight', 'weight'), ('rtc_correction', 'correction'),
                      ('rtc_x1_t', 'clean')):
        made = torch.stack([getattr(step, part) for step in guidance.steps])
        yield from case.compare('guidance', FLOAT, made, key)
    yield from case.compare('guidance', FLOAT, guidance.held, 'rtc_weights')


class _Watch(PassHooks):
    """Keeps noisy actions, their rows and the velocity of every step, before it is guided."""

    def __init__(self) -> None:
        self.actions: list[Tensor] = []
        self.rows: list[Tensor] = []
        self.velocities: list[Tensor] = []

    def denoise(self, state: DenoisingStep) -> None:
        """Look, and leave the step to whoever comes next."""
        assert isinstance(state, FlowStep)
        self.actions.append(state.actions)
        self.rows.append(state.embed(state.actions))
        self.velocities.append(state.run()[0])


class _Inputs:
    """Context in which the first inputs of modules are kept, one list for all of them."""

    def __init__(self, modules: Iterable[nn.Module]):
        self._seen: list[Tensor] = []
        self._modules = [*modules]

    def __enter__(self) -> list[Tensor]:
        self._handles = [
            module.register_forward_pre_hook(lambda _, given: self._seen.append(given[0]))
            for module in self._modules]
        return self._seen

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
