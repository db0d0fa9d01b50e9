"""The two vision transformers, DINOv2-like and SigLIP-like, and the projector behind them.

Modules carry the names that public OpenVLA checkpoints use, so weights load without renaming.
Unlike the reference, blocks after the one whose output is used are not there at all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_policy_node.models.config import TowerConfig


class Attention(nn.Module):
    """Multi-head self-attention over all patches of one image."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between them."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return self.fc2(functional.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learnt factor per channel."""

    def __init__(self, width: int):
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return x * self.scale_factor


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn = Attention(config.width, config.heads)
        self.ls1 = LayerScale(config.width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config.width, config.mlp_width)
        self.ls2 = LayerScale(config.width) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Module):
    """Cuts an image into patches and embeds each."""

    def __init__(self, width: int, patch_px: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_px, stride=patch_px)

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, H/patch * W/patch, width], row by row."""
        return self.proj(image).flatten(2).transpose(1, 2)


class Tower(nn.Module):
    """A vision transformer that returns patch features without a final norm."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        rows, columns = config.grid
        self.patch_embed = PatchEmbedding(config.width, config.patch_px)
        # Positions belong to patches only; class and register tokens have none.
        self.pos_embed = nn.Parameter(torch.zeros(1, rows * columns, config.width))
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        if config.register_tokens:
            self.reg_token = nn.Parameter(torch.zeros(1, config.register_tokens, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))

    def forward(self, image: Tensor) -> Tensor:
        """Normalised [B, 3, H, W] -> [B, patches, width]."""
        x = self.patch_embed(image) + self.pos_embed
        prefix = [
            getattr(self, name).expand(len(x), -1, -1)
            for name in ('cls_token', 'reg_token')
            if hasattr(self, name)
        ]
        patches = x.shape[1]
        x = torch.cat([*prefix, x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x[:, -patches:]


class VisionBackbone(nn.Module):
    """Both towers on the same images, their features side by side."""

    def __init__(self, dino: TowerConfig, siglip: TowerConfig):
        super().__init__()
        self.featurizer = Tower(dino)
        self.fused_featurizer = Tower(siglip)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 6, H, W], DINO-normalised RGB then SigLIP-normalised -> [B, patches, both]."""
        dino, siglip = pixels.split(3, dim=1)
        return torch.cat([self.featurizer(dino), self.fused_featurizer(siglip)], dim=-1)


class Projector(nn.Module):
    """From fused visual features to the width of the language model."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.fc1 = nn.Linear(features, 4 * features)
        self.fc2 = nn.Linear(4 * features, width)
        self.fc3 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., features] -> [..., width]."""
        return self.fc3(functional.gelu(self.fc2(functional.gelu(self.fc1(x)))))
