"""Recorded steps of SmolVLA's training: losses of the velocity, and gradients of their mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vla_policy_node import families
from vla_policy_node.checks.findings import Comparison, exact, relative
from vla_policy_node.checks.golden_decoders import FLOAT, Case
from vla_policy_node.nn.flow import between

if TYPE_CHECKING:
    from vla_policy_node.families.smolvla import SmolVla
    from vla_policy_node.nn.sequence import TokenSequence

GRADIENT = relative(1e-3)
# LeRobot trains these by default, and leaves vision and language as they are.
TRAINED = 'action_head.', 'state_proj.'


def is_recording(recording: Mapping[str, np.ndarray]) -> bool:
    """Whether these arrays are of a training step."""
    return recording.keys() >= {'loss_mean', 'action_norm', 'noise', 'time'}


def compare_training(
    network: SmolVla, sequence: TokenSequence, case: Case
) -> Iterator[Comparison]:
    """Loss and gradients of one step; sequence: the prefix, which the state's row is part of."""
    actions, noise, time = case['action_norm'], case['noise'], case['time']
    padded = functional.pad(actions, (0, noise.shape[2] - actions.shape[2]))
    noisy, wanted = between(padded, noise, time)
    yield from case.compare('training: noisy actions', FLOAT, noisy, 'x_t')
    yield from case.compare('training: velocity to learn', FLOAT, wanted, 'u_t')
    losses = network.flow_loss(sequence, actions, noise, time)
    yield from case.compare('training: losses', FLOAT, losses, 'loss_elements_padded')
    # Actions behind the end of an episode count neither in the sum nor in what it is divided by.
    counted = torch.ones(losses.shape[:2], device=losses.device)
    if 'action_is_pad' in case:
        counted = (~case['action_is_pad']).float()
    errors = losses[..., : actions.shape[2]].mean(dim=2) * counted
    each = errors.sum(dim=1) / counted.sum(dim=1).clamp(min=1)
    mean = errors.sum() / counted.sum().clamp(min=1)
    yield from case.compare('training: loss', FLOAT, each, 'loss_per_sample')
    yield from case.compare('training: loss', FLOAT, mean, 'loss_mean')
    mean.backward()
    found = _gradients(network)
    yield from case.compare(
        'training: trained tensors', exact, torch.tensor(len(found)), 'n_params_with_grad')
    for name, gradient in found.items():
        yield from case.compare('training: gradients', GRADIENT, gradient, f'grad__{name}')


def _gradients(network: SmolVla) -> dict[str, Tensor]:
    """By the names of the tensors in the files."""
    locate = families.locator(network.config)
    return {
        locate(name)[1]: parameter.grad for name, parameter in network.named_parameters()
        if parameter.grad is not None}
