"""LightVLA's differentiable selection, for fine-tuning (arXiv 2509.12594, section III)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional

from vla_policy_node.acceleration.base import Method
from vla_policy_node.acceleration.lightvla import find_winners, score
from vla_policy_node.models.token_sequence import TokenSequence


class LightVlaTraining(Method):
    """Replaces each visual token by the one it votes for, with a straight-through gradient.

    The number of rows stays, duplicates included, so batches work. Any batch size; not offered
    by name because a policy that runs has no use for it.

    noise_scale: factor of uniform noise on the scores; the release lowers it linearly from 1
        to 0 over the training. Set it before each step.
    """

    def __init__(self, noise_scale: float = 0.0):
        self.noise_scale = noise_scale

    def select_tokens(self, sequence: TokenSequence) -> TokenSequence:
        """Swap the visual rows, and their positions, for the chosen ones."""
        visual = sequence.visual
        scores = score(visual, sequence.context)
        scores = scores + self.noise_scale * torch.rand_like(scores)
        winners = find_winners(scores)
        hard = functional.one_hot(winners, visual.shape[1])
        soft = torch.softmax(scores, dim=-1)
        chosen = (hard + (soft - soft.detach())) @ visual.float()
        rows = slice(1, 1 + sequence.visual_rows)
        states, positions = sequence.states.clone(), sequence.positions.clone()
        states[:, rows] = chosen.to(states.dtype)
        positions[:, rows] = positions[:, rows].gather(1, winners)
        return replace(sequence, states=states, positions=positions)
