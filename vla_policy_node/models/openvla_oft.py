"""OpenVLA-OFT with L1 regression, any size (Kim et al. 2025; arXiv 2502.19645)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vla_policy_node.models.config import PROPRIO_DIMENSION, ModelConfig
from vla_policy_node.models.heads import L1ActionHead, ProprioProjector
from vla_policy_node.models.language_model import LanguageModel
from vla_policy_node.models.token_sequence import TokenSequence
from vla_policy_node.models.towers import Projector, VisionBackbone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vla_policy_node.acceleration.base import Method

# Rows the head reads, as the number of rows between them and the end of the sequence.
# 'oft': each slot is predicted by the row before it, as training does: the last prompt row and
#     all slots but the last. 'last56': LightVLA's released inference, two rows later, which ends
#     on the stop token although its training used the rows of 'oft'.
ACTION_ROWS = {'oft': 2, 'last56': 0}


class OpenVlaOft(nn.Module):
    """Two cameras, proprio and a prompt in, one chunk of normalised actions out."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        width = config.language_model.width
        self.vision_backbone = VisionBackbone(config.dino, config.siglip)
        self.projector = Projector(config.dino.width + config.siglip.width, width)
        self.language_model = LanguageModel(config.language_model)
        self.proprio_projector = ProprioProjector(PROPRIO_DIMENSION, width)
        self.action_head = L1ActionHead(width)

    def forward(
        self,
        pixels: Tensor,
        proprio: Tensor,
        prompt_ids: Tensor,
        methods: Sequence[Method] = (),
        action_rows: str = 'oft',
        mark: Callable[[str], None] = lambda stage: None,
    ) -> Tensor:
        """Run the stages in order and give each acceleration method its turn between them.

        pixels: [B, cameras, 6, H, W]. proprio: [B, 8] in [-1, 1]. prompt_ids: [B, L] int64,
        BOS first, `empty` last, `pad` right after BOS where a prompt is shorter than others of
        its batch. mark: called with the name of each stage as it ends.
        Returns normalised actions, [B, K, 7].
        """
        features = self.visual_features(pixels)
        for method in methods:
            features = method.visual_features(features)
        visual = self.projector(features)
        mark('vision')

        sequence = self.assemble(visual, proprio, prompt_ids)
        for method in methods:
            sequence = method.select_tokens(sequence)
        mark('select')

        def between_layers(index: int, sequence: TokenSequence) -> TokenSequence:
            for method in methods:
                sequence = method.before_layer(index, sequence)
            return sequence

        states = self.language_model(sequence, self.action_rows(action_rows), between_layers)
        mark('language_model')
        return self.action_head(states)

    def visual_features(self, pixels: Tensor) -> Tensor:
        """[B, cameras, 6, H, W] -> [B, cameras * patches, features], camera by camera."""
        features = self.vision_backbone(pixels.flatten(0, 1))
        return features.reshape(len(pixels), -1, features.shape[-1])

    def assemble(self, visual: Tensor, proprio: Tensor, prompt_ids: Tensor) -> TokenSequence:
        """Lay out the rows of `models.token_sequence`; the action slots are zero vectors.

        Padding sits before the prompt instead of at the end, where the reference has it: with
        explicit positions and hidden keys the place of a row does not matter, and the action
        rows are the same for the whole batch.
        """
        text = self.language_model.embed_tokens(prompt_ids)
        stop = self.language_model.embed_tokens.weight[self.config.token_ids.stop]
        batch, _, width = text.shape
        states = torch.cat(
            [
                text[:, :1],
                visual,
                self.proprio_projector(proprio),
                text[:, 1:],
                text.new_zeros(batch, self.config.action_slots, width),
                stop.expand(batch, 1, width),
            ],
            dim=1,
        )
        if batch == 1:
            positions = torch.arange(states.shape[1], device=states.device)[None]
            return TokenSequence(states, positions, visual_rows=visual.shape[1])
        real = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        prompt = slice(visual.shape[1] + 2, visual.shape[1] + 1 + prompt_ids.shape[1])
        real[:, prompt] = prompt_ids[:, 1:] != self.config.token_ids.pad
        return TokenSequence(
            states,
            positions=real.cumsum(1) - 1,
            visual_rows=visual.shape[1],
            key_bias=torch.zeros(real.shape, device=real.device).masked_fill(~real, -torch.inf),
        )

    def action_rows(self, convention: str) -> slice:
        """Rows the action head reads, counted from the end (dropped tokens do not move them)."""
        after = ACTION_ROWS[convention]
        return slice(-self.config.action_slots - after, -after or None)
