"""Recordings of pi0 and pi0.5: an inference from pixels to actions, stage by stage.

The network runs as it does on a robot, with the prefix once and the state's row behind it; what
its parts see and make is looked at from outside. Both decoders also run in one pass, as in
training. Rows of words and cameras that are not there are not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_policy_node import families
from vla_policy_node.checkpoints.statistics import Statistics
from vla_policy_node.checks import golden_pi_rtc, golden_pi_training, golden_transforms
from vla_policy_node.checks import golden_pi_values as values
from vla_policy_node.checks.findings import Comparison, compare, exact, relative
from vla_policy_node.checks.golden_decoders import FLOAT, Case, allowed
from vla_policy_node.checks.golden_pi_training import prefix_of
from vla_policy_node.families import pi0, read_model_config
from vla_policy_node.families.pi0 import Pi0, PrefixSequence
from vla_policy_node.families.pi0_config import Pi0Config
from vla_policy_node.nn.flow import embed_time, flow_times
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.hooks import PassHooks
from vla_policy_node.nn.joint import Stream, joint_forward
from vla_policy_node.nn.norms import AdaptiveRmsNorm
from vla_policy_node.nn.sequence import TokenSequence, lay_out
from vla_policy_node.runtime.loading import load_model

ACTIONS = relative(2e-5)
WAVES = relative(1e-6)
MOST_STEPS = 1000


def is_recording(recording: Mapping[str, np.ndarray]) -> bool:
    """Whether these arrays are of an inference of pi0 or pi0.5."""
    return recording.keys() >= {'image_embeds', 'lang_tokens', 'suffix_embs', 'suffix_out'}


def compare_recordings(
    directory: Path, pack: Path, recordings: Mapping[str, Mapping[str, np.ndarray]], device: str,
    statistics_key: str, said: Callable[[str, Iterator[Comparison]], Iterator[Comparison]],
) -> Iterator[Comparison]:
    """Compare what a pack holds of a policy, in the order of its recordings.

    said: turns what a recording lacks into a sentence.
    """
    config = read_model_config(directory)
    network = load_model(directory, config, device, 'float32')
    assert isinstance(network, Pi0)
    assert isinstance(config, Pi0Config)
    network.requires_grad_(False)

    def statistics() -> Statistics:
        return families.of(config).load_statistics(directory, config, statistics_key)

    cases = [Case(name, arrays, device) for name, arrays in recordings.items()
             if is_recording(arrays)]
    network.config = replace(config, accumulated_time=_accumulated(config, cases))
    for case in cases:
        yield from said(case.name, compare_case(network, case))
        if 'actions' in case:
            yield from said(case.name, values.compare_actions(network, statistics(), case))
    for name, arrays in recordings.items():
        other = Case(name, arrays, device)
        if golden_pi_training.is_recording(arrays):
            norms = golden_pi_training.read_norms(pack)
            yield from said(name, golden_pi_training.compare_training(
                network, other, cases, norms))
        elif golden_pi_rtc.is_recording(arrays):
            yield from said(name, golden_pi_rtc.compare_guided(network, other, cases))
        elif values.is_end_to_end(arrays):
            yield from said(name, values.compare_end_to_end(
                network, statistics(), other, values.read_prompts(pack)))
        elif values.is_of_pictures(arrays):
            yield from said(name, values.compare_resizing(other))
        elif golden_transforms.is_recording(arrays):
            yield from said(name, golden_transforms.compare_transforms(name, arrays))
        elif any(f'{case.name}_openpi_torch_x0' in arrays for case in cases):
            yield from said(name, _compare_openpi(network, other, cases))
        elif not is_recording(arrays):
            yield Comparison('other recordings', 0.0, np.inf, name, f'not compared: {name}')
    if (pack / golden_transforms.PROMPTS).is_file():
        yield from said(golden_transforms.PROMPTS, golden_transforms.compare_prompts(pack))
    for case in cases:
        if rest := case.rest():
            yield Comparison(
                'other arrays', 0.0, np.inf, case.name, f'not compared: {", ".join(rest)}')


def _accumulated(config: Pi0Config, cases: list[Case]) -> bool:
    """Whether times were added up in the recordings, whoever laid out the checkpoint."""
    for case in cases:
        for way in (False, True):
            times = torch.tensor(flow_times(config.denoising_steps, way))
            if 'time' in case and torch.equal(times, case['time'].cpu()):
                return way
    return config.accumulated_time


class _Watch(PassHooks):
    """Keeps keys and values of the prefix, and noisy actions and velocity of every step."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.actions: list[Tensor] = []
        self.velocities: list[Tensor] = []

    def keys_values(self, index, sequence, key, value):
        """Look, and change nothing."""
        self.keys.append(key)
        self.values.append(value)
        return key, value

    def denoise(self, state):
        """Run the step."""
        velocity, _ = state.run()
        self.actions.append(state.actions)
        self.velocities.append(velocity)
        return velocity


class _Inputs:
    """Context in which the first inputs of modules are kept, one list for all of them."""

    def __init__(self, *modules: nn.Module):
        self.seen: list[Tensor] = []
        self._modules = modules

    def __enter__(self) -> list[Tensor]:
        self._handles = [
            module.register_forward_pre_hook(lambda _, given: self.seen.append(given[0]))
            for module in self._modules]
        return self.seen

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


@torch.inference_mode()
def compare_case(network: Pi0, case: Case) -> Iterator[Comparison]:
    """One inference."""
    yield from _compare_vision(network, case)
    words = network.language_model.embed_words(case['lang_tokens'])
    yield from case.compare('embeddings of the words', FLOAT, words, 'lang_embeds')
    sequence, valid = prefix_of(network, case)
    yield from _compare_layout(sequence, valid, case)
    watch, layers = _Watch(), network.action_head.decoder.layers
    with (_Inputs(*network.language_model.layers) as prefix_in, _Inputs(*layers) as expert_in,
          _Inputs(network.action_head.action_out_proj) as outputs):
        forward_pass = ForwardPass([watch])
        context = network.prefill(sequence, forward_pass)
        actions = network.denoise(context, forward_pass, case['noise'])
    yield from _compare_prefix(watch, prefix_in, valid, case)
    state_in = expert_in[:len(layers)] if sequence.state is not None else []
    yield from _compare_steps(network, watch, state_in, expert_in[len(state_in):], outputs, case)
    yield from _compare_together(network, sequence, valid, case)
    yield from case.compare(
        'normalised actions', ACTIONS, network.to_actions(actions), 'actions_norm')
    if 'alt_steps' in case:
        steps = min(int(case['alt_steps']), MOST_STEPS)
        others = flow(network, case, denoising_steps=steps)
        yield from case.compare(
            'normalised actions', ACTIONS, network.to_actions(others), 'alt_actions_norm')


def flow(network: Pi0, case: Case, **changes: Any) -> Tensor:
    """Actions [B, K, D] of a recorded prefix and noise, with other settings of the flow."""
    nobody, config = ForwardPass(), network.config
    try:
        network.config = replace(config, **changes)
        return network.denoise(
            network.prefill(prefix_of(network, case)[0], nobody), nobody, case['noise'])
    finally:
        network.config = config


def _compare_vision(network: Pi0, case: Case) -> Iterator[Comparison]:
    if 'pixels' not in case:
        return
    yield from values.compare_pictures(network, case)
    pixels = case['pixels']
    with _Inputs(*network.vision.layers) as blocks:
        made = network.vision(pixels[:, 0])
    yield from case.compare(
        'vision: every block', FLOAT, torch.stack(blocks), 'vit_hidden')
    yield from case.compare('vision: last states', FLOAT, made, 'vit_out')
    visual = network.visual(pixels, None).unflatten(1, (pixels.shape[1], -1))
    yield from case.compare('visual tokens', FLOAT, visual, 'image_embeds')


def _compare_layout(
    prefix: PrefixSequence, valid: Tensor, case: Case
) -> Iterator[Comparison]:
    yield from case.compare('prefix: rows that count', exact, valid, 'prefix_pad_masks')
    yield from case.compare('prefix: positions', exact, prefix.positions, 'prefix_position_ids')
    seen = allowed([prefix], valid, pi0.VISIBILITY)
    yield from case.compare('prefix: who sees whom', exact, seen, 'prefix_att_2d')


def _compare_prefix(
    watch: _Watch, inputs: list[Tensor], valid: Tensor, case: Case
) -> Iterator[Comparison]:
    rows = valid[..., None]
    if 'prefix_layer_in' in case:  # of all layers, or of the last ones
        states = torch.stack(inputs[-len(case['prefix_layer_in']):])
        yield from case.compare('prefix: every layer', FLOAT, states, 'prefix_layer_in', rows)
    for name, parts in (('k', watch.keys), ('v', watch.values)):
        stage, made = f'prefix: cached {name}', torch.stack(parts)[:, :, 0]
        yield from case.compare(stage, FLOAT, made, f'prefix_{name}', rows)
        yield from case.compare(stage, FLOAT, made[..., :8], f'prefix_{name}_first8', rows)
        yield from case.compare(stage, FLOAT, made.norm(dim=-1), f'prefix_{name}_norm', valid)


def _compare_steps(
    network: Pi0, watch: _Watch, state_in: list[Tensor], layers_in: list[Tensor],
    outputs: list[Tensor], case: Case,
) -> Iterator[Comparison]:
    """Every step of the flow; the state's row, which ran once, is before those of the first."""
    head, kept = network.action_head, case['kept_steps'].tolist()
    depth = len(head.decoder.layers)
    config = network.config
    times = torch.tensor(flow_times(config.denoising_steps, config.accumulated_time))
    yield from case.compare('time', exact, times, 'time')
    waves = embed_time(times, head.decoder.config.width, head.periods)
    yield from case.compare('waves of the time', WAVES, waves, 'time_emb')
    if head.adaptive:
        made = [head.embed(x, head.waves(times[index : index + 1]).expand(len(x), -1))[1]
                for index, x in enumerate(watch.actions)]
        conditions = torch.stack([condition for condition in made if condition is not None])
        yield from case.compare('expert: conditions', FLOAT, conditions, 'adarms_cond')
        yield from _compare_modulations(network, conditions, case)
    steps = [layers_in[index * depth : (index + 1) * depth] for index in range(len(times))]
    first = [torch.cat([state, rows], dim=1) for state, rows in zip(
        state_in or [rows[:, :0] for rows in steps[0]], steps[0], strict=True)]
    embedded = torch.stack([
        torch.cat([first[0][:, :len(state_in[:1])], steps[index][0]], dim=1) for index in kept])
    yield from case.compare('expert: rows', FLOAT, embedded, 'suffix_embs')
    yield from case.compare(
        'expert: every layer', FLOAT, torch.stack(first), 'expert_layer_in_step0')
    rows = outputs[0].shape[1]
    last = torch.stack([outputs[index] for index in kept])
    yield compare('expert: last states', FLOAT, last, case['suffix_out'][:, :, -rows:], case.name)
    yield from case.compare('velocity', FLOAT, torch.stack(watch.velocities), 'v_t')
    noisy = torch.stack([*watch.actions, watch.actions[-1] - watch.velocities[-1] / len(times)])
    yield from case.compare('noisy actions', FLOAT, noisy, 'x_t')


def _compare_together(
    network: Pi0, prefix: PrefixSequence, valid: Tensor, case: Case
) -> Iterator[Comparison]:
    """Positions and masks of the expert's rows, and both decoders in one pass, as they train."""
    head, rows = network.action_head, case['suffix_embs'][0]
    count = 0 if prefix.state is None else 1
    spans = lay_out({'state': count, 'actions': rows.shape[1] - count})
    places = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    suffix = TokenSequence(rows, prefix.positions[:, -1:] + places, spans)
    yield from case.compare(
        'expert: positions', exact, suffix.positions, 'suffix_position_ids')
    everyone = torch.cat([valid, valid.new_ones(rows.shape[:2])], dim=1)
    seen = allowed([prefix, suffix], everyone, pi0.VISIBILITY)[:, valid.shape[1]:]
    yield from case.compare('expert: who sees whom', exact, seen, 'suffix_att_2d')
    condition = case['adarms_cond'][case['kept_steps'][0]] if head.adaptive else None
    together = joint_forward([
        Stream(network.language_model, prefix), Stream(head.decoder, suffix, condition)],
        pi0.VISIBILITY)[1]
    yield compare('both decoders in one pass', FLOAT, together, case['suffix_out'][0], case.name)


def _compare_modulations(
    network: Pi0, conditions: Tensor, case: Case
) -> Iterator[Comparison]:
    """Scale, shift and gate of some norms in all steps, of the first batch element."""
    expert = network.action_head.decoder
    last = len(expert.layers) - 1
    for key, norm in (
        ('mod_in_0', expert.layers[0].input_layernorm),
        (f'mod_post_{last}', expert.layers[last].post_attention_layernorm),
        ('mod_final', expert.norm),
    ):
        assert isinstance(norm, AdaptiveRmsNorm)
        yield from case.compare('adaptive norms', FLOAT, norm.dense(conditions[:, 0]), key)


@torch.inference_mode()
def _compare_openpi(
    network: Pi0, recording: Case, cases: list[Case]
) -> Iterator[Comparison]:
    """The same inferences with the times of openpi, and what openpi made of them."""
    times = torch.tensor(flow_times(network.config.denoising_steps, accumulated=True))
    for case in cases:
        actions = flow(network, case, accumulated_time=True)
        yield from recording.compare(
            'times of openpi', exact, times, f'{case.name}_openpi_torch_time')
        for code in ('torch', 'jax'):
            yield from recording.compare(
                'actions of openpi', FLOAT, actions, f'{case.name}_openpi_{code}_x0')
