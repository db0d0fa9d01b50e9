"""A recorded training step of pi0 and pi0.5: flow matching in one pass of both decoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vla_policy_node import families
from vla_policy_node.checkpoints.reading import read_json
from vla_policy_node.checks.findings import Comparison, compare, exact, relative
from vla_policy_node.checks.golden_decoders import FLOAT, Case, allowed
from vla_policy_node.families import pi0
from vla_policy_node.families.pi0 import Pi0, PrefixSequence
from vla_policy_node.nn.sequence import TokenSequence, lay_out

GRADIENT = relative(1e-4)
NORMS = 'grad_norms.json'
# Norms below are of gradients that are 0 but for rounding.
LEAST_NORM = 1e-5


def is_recording(recording: Mapping[str, np.ndarray]) -> bool:
    """Whether these arrays are of a training step."""
    return recording.keys() >= {'loss_elements', 'actions_norm_padded', 'noise', 'time'}


def prefix_of(network: Pi0, case: Case) -> tuple[PrefixSequence, Tensor]:
    """The recorded prefix, and which of its rows count, [B, T] bool."""
    seen, words = case['image_masks'], case['lang_masks']
    visual = network.visual(case['pixels'], None) if 'pixels' in case else (
        case['image_embeds'].flatten(1, 2))
    valid = torch.cat([seen.repeat_interleave(
        visual.shape[1] // seen.shape[1], dim=1), words], dim=1)
    state = case['state_norm_padded'] if 'state_norm_padded' in case else words[:, :0].float()
    rows = {'visual': visual, 'prompt': network.language_model.embed_words(case['lang_tokens'])}
    return network.prefix(rows, valid, state), valid


def read_norms(pack: Path) -> Mapping[str, object]:
    """Norms of the gradients by the name of the weight in the files, if the pack has them."""
    path = pack / NORMS
    return read_json(path) if path.is_file() else {}


@torch.inference_mode(False)
@torch.enable_grad()
def compare_training(
    network: Pi0, recording: Case, cases: Sequence[Case], norms: Mapping[str, object]
) -> Iterator[Comparison]:
    """Loss and gradients of the inference in the pack that has as many samples.

    The gradients are those of LeRobot's loss, which leaves out what fills up an action.
    """
    time, actions = recording['time'], recording['actions_norm_padded']
    fitting = [case for case in cases if len(case['lang_tokens']) == len(time)]
    if not fitting:
        yield Comparison(
            'training', np.inf, 0.0, recording.name,
            f'is of {len(time)} samples, and the pack has no inference of as many')
        return
    network.requires_grad_(True)
    try:
        prefix, valid = prefix_of(network, fitting[-1])
        yield from _compare_layout(prefix, valid, actions, recording)
        noise = recording['noise']
        share = time[:, None, None]
        velocity, states = network.predict(prefix, share * noise + (1 - share) * actions, time)
        yield from recording.compare('training: last states', FLOAT, states, 'suffix_out')
        yield from recording.compare('training: velocity', FLOAT, velocity, 'v_pred')
        losses = network.flow_loss(prefix, actions, noise, time)
        mean = losses[..., : network.config.action_size].mean()
        yield from recording.compare('training: losses', FLOAT, losses, 'loss_elements')
        yield from recording.compare("training: LeRobot's loss", FLOAT, mean, 'loss_lerobot')
        yield from recording.compare(
            "training: openpi's loss", FLOAT, losses.mean(), 'loss_openpi')
        mean.backward()
        yield from _compare_gradients(network, recording, norms)
    finally:
        network.zero_grad()
        network.requires_grad_(False)


def _compare_layout(
    prefix: PrefixSequence, valid: Tensor, actions: Tensor, recording: Case
) -> Iterator[Comparison]:
    count = actions.shape[1] + (prefix.state is not None)
    places = torch.arange(1, count + 1, device=valid.device)
    suffix = TokenSequence(
        prefix.states.new_zeros(len(valid), count, 0), prefix.positions[:, -1:] + places,
        lay_out({'state': count - actions.shape[1], 'actions': actions.shape[1]}))
    everyone = torch.cat([valid, valid.new_ones(len(valid), count)], dim=1)
    yield from recording.compare(
        'training: who sees whom', exact, allowed([prefix, suffix], everyone, pi0.VISIBILITY),
        'joint_att_2d')
    yield from recording.compare(
        'training: positions', exact, torch.cat([prefix.positions, suffix.positions], dim=1),
        'joint_position_ids')


def _compare_gradients(
    network: Pi0, recording: Case, norms: Mapping[str, object]
) -> Iterator[Comparison]:
    locate, found = families.locator(network.config), {}
    for own, parameter in network.named_parameters():
        if parameter.grad is not None:
            found[locate(own)[1]] = parameter.grad
    total = torch.stack([gradient.norm() for gradient in found.values()]).norm()
    yield from recording.compare('training: gradients', GRADIENT, total, 'grad_total_norm')
    for name, gradient in found.items():
        yield from recording.compare(
            'training: gradients', GRADIENT, gradient, f'grad__{name}')
        norm = norms.get(name)
        if isinstance(norm, float) and norm > LEAST_NORM:
            yield compare('training: norms of gradients', GRADIENT, gradient.norm(),
                          np.float64(norm), recording.name)
