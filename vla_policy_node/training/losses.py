"""The training forward pass: the policy's own stages, with the losses on each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vla_policy_node.acceleration.objective import Objective
from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.hooks import PassHooks
from vla_policy_node.training.flow import flow_losses
from vla_policy_node.training.grounding import (
    AttentionRecorder,
    GroundingHeads,
    attend_loss,
    readout_losses,
    token_losses,
)
from vla_policy_node.training.token_sampling import sample_tokens

if TYPE_CHECKING:
    from vla_policy_node.families.cogact import CogAct
    from vla_policy_node.families.prismatic import PrismaticVla
    from vla_policy_node.training.batches import Batch
    from vla_policy_node.training.cognition import CognitionBatch
    from vla_policy_node.training.config import TrainingConfig

TOKEN_LOSSES = ('token', 'point')  # on visual tokens, where the language model need not run
STATE_LOSSES = ('attend', 'readout', 'action', 'noise', 'flow')
# What a policy must offer to learn by a loss.
NEEDS = {
    'attend': (Capability.ONE_PASS,),
    'readout': (Capability.ONE_PASS,),
    'action': (Capability.REGRESSION,),
    'noise': (Capability.DENOISING,),
    'flow': (Capability.FLOW,),
}


def compute_losses(
    model: PrismaticVla,
    heads: GroundingHeads,
    batch: Batch,
    config: TrainingConfig,
    objective: Objective,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """Return the losses that `config` gives a weight, and errors for the log, as scalars.

    objective: what a method teaches; it takes part in the pass, and may add losses.
    rng: draws the tokens, where the step runs on a part of them, and noise for the loss 'noise'.
    """
    cameras = batch.pixels.shape[1]
    sample = None
    if config.tokens_kept:
        sample = sample_tokens(batch.things, config.tokens_kept, rng)
    if sample is None:
        visual = model.visual(batch.pixels, batch.prompt_ids, ForwardPass())
    else:
        visual = model.projector(
            model.visual_features(batch.pixels, batch.prompt_ids, sample.by_image))
    by_camera = visual.unflatten(1, (cameras, -1))

    losses = {}
    coverage = batch.coverage
    if sample is not None:
        index = sample.patches[:, :, None].expand(-1, -1, coverage.shape[2], -1)
        coverage = coverage.gather(3, index)
    if config.losses.get('token') or config.losses.get('point'):
        embed_words = model.language_model.embed_words
        losses |= token_losses(by_camera, coverage, embed_words, batch, heads)
    losses |= objective.token_losses(visual, batch)
    if not config.runs_language_model:
        return losses

    sequence = model.assemble(visual, batch.proprio, batch.prompt_ids)
    if sample is not None:
        sequence = sample.place(sequence)
    if model.config.can(Capability.FLOW):
        forward_pass = ForwardPass([objective])
        forward_pass.begin()
        return losses | flow_losses(
            model, sequence, forward_pass, coverage, batch, heads, config, rng)
    recorder = AttentionRecorder(model)
    hooks: list[PassHooks] = [recorder] if config.losses.get('attend') else []
    hooks.append(objective)
    forward_pass = ForwardPass(hooks)
    forward_pass.begin()
    states = model.prefill(sequence, forward_pass)
    if config.losses.get('attend'):
        losses['attend'] = attend_loss(recorder.attention, coverage, batch)
    if config.losses.get('readout'):
        losses |= readout_losses(states, batch, heads)
    if config.losses.get('action'):
        losses |= _action_errors(model.action_head(states), batch)
    if config.losses.get('noise'):
        losses |= noise_losses(model, states, batch, config, rng)
    return losses | objective.state_losses(model, states, batch)


def noise_losses(
    model: CogAct,
    states: Tensor,
    batch: Batch | CognitionBatch,
    config: TrainingConfig,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """The loss 'noise' and, in validation, how far sampled actions are off."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    losses = {'noise': model.noise_loss(
        states[batch.has_actions], batch.actions[batch.has_actions],
        config.repeated_diffusion_steps, generator)}
    if not model.training:
        losses |= _action_errors(model.decode(states, ForwardPass()), batch)
    return losses


def _action_errors(actions: Tensor, batch: Batch | CognitionBatch) -> dict[str, Tensor]:
    """L1 of normalised actions [B, K, D]: the loss 'action', and parts of it for the log.

    NaN for a batch without any actions.
    """
    error = (actions - batch.actions).abs()
    error = error.masked_fill(~batch.has_actions[:, None, None], 0)
    dimensions = error.sum((0, 1)) / (batch.has_actions.sum() * error.shape[1])
    return {
        'action': dimensions.mean(),
        'action_xyz': dimensions[:3].mean().detach(),
        'action_gripper': dimensions[-1].detach(),
    }


def total_loss(losses: dict[str, Tensor], config: TrainingConfig) -> Tensor:
    """Weighted sum of the losses."""
    return sum(weight * losses[name] for name, weight in config.losses.items() if weight)
