"""Flow matching in training: pi0's and SmolVLA's loss, and what their action rows look at.

As openpi and LeRobot train: times from Beta(1.5, 1), and the mean over the numbers that the robot
has, without those that fill up the room (LeRobot). The prefix runs once, and each sample gets
several draws of noise and time. Where the rows of the expert are to find something, they are to
find it from any noise; samples without actions are noise on the way to the mean of all actions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_policy_node.nn.flow import between, draw_times, flow_times, integrate
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.sequence import TokenSequence
from vla_policy_node.nn.transformer import share
from vla_policy_node.training.grounding import (
    ATTEND_LAYER,
    GroundingHeads,
    attend_loss,
    readout_losses,
)

if TYPE_CHECKING:
    from vla_policy_node.families.pi0 import Pi0
    from vla_policy_node.families.smolvla import SmolVla
    from vla_policy_node.training.batches import Batch
    from vla_policy_node.training.config import TrainingConfig

_WATCHED_HEADS = 2  # as many as `attend_loss` reads


class ExpertAttention:
    """How the rows of an action expert divide their attention in layer ATTEND_LAYER, or the last.

    attention: [B, heads, rows, visual rows], with its gradient, once they have run.
    """

    def __init__(self, layers: nn.ModuleList, visual: slice):
        """visual: which rows of the prefix are visual; none of them may be dropped."""
        self._module: Any = layers[min(ATTEND_LAYER, len(layers) - 1)].self_attn
        self._visual = visual
        self.attention = torch.empty(0)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See what runs inside of this."""
        handle = self._module.register_forward_pre_hook(self._see)
        try:
            yield
        finally:
            handle.remove()

    def _see(self, module: Any, inputs: tuple) -> None:
        x, rope, _, rows, place = inputs
        query, own, _ = module.project(x, rope, rows)
        past, _ = place.cache.keys_values(place.index)
        bias = place.cache.bias(place.index)
        heads = query.shape[1]
        key = share(torch.cat([past, own], dim=2), heads)[:, :_WATCHED_HEADS]
        logits = (query[:, :_WATCHED_HEADS] @ key.mT).float() / module.head_width**0.5
        if bias is not None:
            logits = logits + functional.pad(bias, (0, own.shape[2]))[:, None, None]
        self.attention = logits.softmax(-1)[..., self._visual]


def flow_losses(
    model: Pi0 | SmolVla,
    sequence: TokenSequence,
    forward_pass: ForwardPass,
    coverage: Tensor,
    batch: Batch,
    heads: GroundingHeads,
    config: TrainingConfig,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """Losses 'flow', 'attend' and 'readout', and in validation how far sampled actions are off.

    sequence: the prefix. rng: seeds noise and times, which are drawn on the CPU.
    """
    draws, sizes = config.repeated_diffusion_steps, model.config
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    actions = batch.actions.masked_fill(~batch.has_actions[:, None, None], 0)
    room = functional.pad(actions, (0, sizes.action_room - actions.shape[2]))
    wanted = room.repeat_interleave(draws, dim=0)
    noise = torch.randn(wanted.shape, generator=generator).to(wanted.device)
    time = draw_times(len(wanted), generator).to(wanted.device)
    noisy, velocity = between(wanted, noise, time)

    step_of = model.flow(sequence, forward_pass, draws)
    step = step_of(noisy, time)
    losses, watcher = {}, None
    if config.losses.get('attend'):
        watcher = ExpertAttention(
            model.action_head.decoder.layers, sequence.span('visual'))
    with watcher.watching() if watcher else nullcontext():
        rows = step.run_layers(step.embed(noisy))
    if watcher:
        by_sample = watcher.attention.unflatten(0, (-1, draws)).transpose(1, 2)
        losses['attend'] = attend_loss(by_sample.flatten(2, 3), coverage, batch)
    if config.losses.get('readout'):
        losses |= readout_losses(rows.unflatten(0, (-1, draws)), batch, heads)
    if config.losses.get('flow'):
        errors = (step.finish(rows) - velocity)[..., : sizes.action_size].square()
        errors = errors.unflatten(0, (-1, draws))[batch.has_actions]
        losses['flow'] = errors.mean()
        if not model.training:
            losses |= _sampled(step_of, noise, sizes, batch, draws)
    return losses


def _sampled(
    step_of: Any, noise: Tensor, sizes: Any, batch: Batch, draws: int
) -> dict[str, Tensor]:
    """L1 of actions that the flow leads to, in normalised units, NaN without any."""
    times = flow_times(sizes.denoising_steps)
    found = integrate(
        lambda _, time, x: step_of(x, torch.full((len(x),), time, device=x.device)).run()[0],
        noise, times)[..., : sizes.action_size]
    off = (found.unflatten(0, (-1, draws)) - batch.actions[:, None]).abs()[batch.has_actions]
    return {'action': off.mean(), 'action_xyz': off[..., :3].mean()}
