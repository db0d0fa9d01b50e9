"""Baseline: the same network, operator by operator as in the public implementation.

It does what openvla-oft and its fork of transformers 4.40 do and this package avoids: each image
passes each vision encoder separately; the encoders' last blocks run although their output is
unused; every decoder layer recomputes its rotary embedding; the last layer computes all rows; all
hidden states are kept; the vocabulary head runs on every row, and its result is cast to float32
and dropped. Results are those of `PrismaticVla`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vla_policy_node.encoding.encoder import Inputs
from vla_policy_node.families.prismatic import PrismaticVla
from vla_policy_node.families.prismatic_config import PrismaticConfig
from vla_policy_node.nn.config import VisionEncoderConfig
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.vision import Block, VisionEncoder


class PublicStructure(nn.Module):
    """Runs a plain `PrismaticVla` with an L1 head the public way; batch 1.

    Weights whose results are dropped stay uninitialised.
    """

    def __init__(self, model: PrismaticVla):
        super().__init__()
        self.config = model.config
        self.model = model
        weight = next(model.parameters())
        options = {'device': weight.device, 'dtype': weight.dtype}
        decoder = self.config.language_model
        self.unused = nn.ModuleList(
            Block(encoder).to(**options) for encoder in (self.config.dino, self.config.siglip))
        self.lm_head = nn.Linear(decoder.width, decoder.vocabulary, bias=False, **options)
        self.requires_grad_(False)

    def forward(self, inputs: Inputs, forward_pass: ForwardPass) -> Tensor:
        """As `PolicyNetwork.forward`."""
        pixels, proprio, prompt_ids = inputs
        forward_pass.begin()
        images = [self._features(image[None]) for image in pixels[0]]
        visual = self.model.projector(torch.cat(images, dim=1))
        forward_pass.mark('vision')
        sequence = self.model.assemble(visual, proprio, prompt_ids)
        sequence = forward_pass.select_tokens(sequence)
        forward_pass.mark('select')
        states, kept = sequence.states, []
        for index, layer in enumerate(self.model.language_model.layers):
            for method in forward_pass.methods:
                method.watch_attention(index, sequence, lambda rows: None)
            kept.append(states)
            rope = self.model.language_model._rope(sequence)
            states = layer(states, rope, None, slice(None))
        states = self.model.language_model.norm(states)
        self.lm_head(states).float()
        rows = states[:, self.model.action_rows(forward_pass.action_rows)]
        forward_pass.mark('language_model')
        return self.model.action_head(rows)

    def _features(self, image: Tensor) -> Tensor:
        """[1, 6, H, W] -> [1, patches, features]."""
        backbone = self.model.vision_backbone
        encoders = (backbone.featurizer, backbone.fused_featurizer)
        return torch.cat(
            [_with_unused_block(encoder, block, channels) for encoder, block, channels
             in zip(encoders, self.unused, image.split(3, dim=1), strict=True)],
            dim=-1,
        )


def _with_unused_block(encoder: VisionEncoder, block: Block, image: Tensor) -> Tensor:
    features = encoder(image)
    block(features)  # without class and register tokens, 2 % less than it would cost
    return features


def wasted_flops(config: PrismaticConfig, rows: int) -> dict[str, int]:
    """FLOPs beyond those of `nn.flops.count_flops`, by stage; rows: in the last layer."""
    decoder = config.language_model
    unasked = rows - config.action_slots
    last_layer = unasked * (
        2 * decoder.width**2 + 3 * decoder.width * decoder.mlp_width + 2 * rows * decoder.width)
    head = rows * decoder.width * decoder.vocabulary
    return {
        'vision': 2 * config.cameras * (_block(config.dino) + _block(config.siglip)),
        'language_model': 2 * (last_layer + head),
    }


def _block(encoder: VisionEncoderConfig) -> int:
    rows = encoder.grid[0] * encoder.grid[1]
    width = encoder.width
    return rows * (4 * width**2 + 2 * width * encoder.mlp_width) + 2 * rows**2 * width
