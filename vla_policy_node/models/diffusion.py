"""OpenVLA-OFT with its diffusion head: the language model runs once per denoising step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vla_policy_node.models.config import ACTION_DIMENSION, ModelConfig
from vla_policy_node.models.ddim import Ddim, initial_noise
from vla_policy_node.models.heads import NoisyActionProjector, time_embedding
from vla_policy_node.models.openvla_oft import OpenVlaOft

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vla_policy_node.nn.hooks import PassHooks


class DiffusionOft(OpenVlaOft):
    """The action slots hold noisy actions, a row after proprio the step, the head the noise."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.noisy_action_projector = NoisyActionProjector(config.language_model.width)

    def forward(
        self,
        pixels: Tensor,
        proprio: Tensor,
        prompt_ids: Tensor,
        methods: Sequence[PassHooks] = (),
        action_rows: str = 'oft',
        mark: Callable[[str], None] = lambda stage: None,
    ) -> Tensor:
        """As in the base class; the methods see the layers once per denoising step."""
        for method in methods:
            method.begin_pass()
        visual = self.visual(pixels, prompt_ids, methods)
        mark('vision')
        shape = (len(pixels), self.config.chunk_length, ACTION_DIMENSION)
        actions = initial_noise(visual, shape)
        schedule = Ddim(self.config.diffusion_steps)
        mark('select')  # there is nothing to select; the stages are those of every policy
        for step in schedule.steps:
            steps = torch.full((len(pixels),), step, device=visual.device)
            time = time_embedding(steps, visual.shape[-1]).to(visual.dtype)
            slots = self.noisy_action_projector(actions)
            sequence = self.assemble(visual, proprio, prompt_ids, time, slots)
            noise = self.action_head(self.decode(sequence, methods, action_rows))
            actions = schedule.step(noise, step, actions)
        mark('language_model')
        return actions
