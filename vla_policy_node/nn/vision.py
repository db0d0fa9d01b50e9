"""The two vision transformers, DINOv2-like and SigLIP-like, and the projector behind them.

Modules carry the names that public OpenVLA checkpoints use, so weights load without renaming.
Unlike the reference, blocks after the one whose output is used are not there at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_policy_node.nn.config import VisionEncoderConfig


@dataclass(frozen=True)
class PatchSample:
    """A part of the patches that stands for all of them, to train at a part of the price.

    patches: [B, M] int64, which ones. key_bias: [B, M] float32 on their attention logits:
    ln(n) where a patch speaks for n.
    """

    patches: Tensor
    key_bias: Tensor

    def gather(self, x: Tensor) -> Tensor:
        """[B, all patches, width] -> [B, M, width]."""
        return x.gather(1, self.patches[:, :, None].expand(-1, -1, x.shape[-1]))

    def mask(self, prefix: int) -> Tensor:
        """For attention over `prefix` other rows and the sample: [B, 1, 1, prefix + M]."""
        return functional.pad(self.key_bias, (prefix, 0))[:, None, None]


class Attention(nn.Module):
    """Multi-head self-attention over all patches of one image."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, width] -> [B, T, width]; the mask is added to the logits."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, mask)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, exact (erf) or approximated by 'tanh'."""

    def __init__(self, width: int, hidden: int, approximate: str = 'none'):
        super().__init__()
        self.approximate = approximate
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return self.fc2(functional.gelu(self.fc1(x), approximate=self.approximate))


class LayerScale(nn.Module):
    """A learnt factor per channel."""

    def __init__(self, width: int):
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return x * self.scale_factor


class Block(nn.Module):
    """A pre-norm transformer block, which text modulates between its two parts if it is FiLM.

    FiLM (Perez et al. 2018, as in OpenVLA-OFT+): x (1 + gamma) + beta, both linear in the text.
    """

    def __init__(self, config: VisionEncoderConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn = Attention(config.width, config.heads)
        self.ls1 = LayerScale(config.width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config.width, config.mlp_width)
        self.ls2 = LayerScale(config.width) if config.layer_scale else nn.Identity()
        if config.language_width:
            self.scale = nn.Linear(config.language_width, config.width)
            self.shift = nn.Linear(config.language_width, config.width)

    def forward(
        self, x: Tensor, language: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """[B, T, width] and, for FiLM, [B, language width] -> [B, T, width]."""
        x, added = self.advance(x, None, language, mask)
        return x + added

    def advance(
        self, x: Tensor, added: Tensor | None, language: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, from and to a sum that is not done yet; added: None for nothing."""
        x = x if added is None else x + added
        x = x + self.ls1(self.attn(self.norm1(x), mask))
        if language is not None:
            x = x * (1 + self.scale(language)[:, None]) + self.shift(language)[:, None]
        return x, self.ls2(self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Module):
    """Cuts an image into patches and embeds each."""

    def __init__(self, width: int, patch_px: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_px, stride=patch_px)

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, H/patch * W/patch, width], row by row."""
        return self.proj(image).flatten(2).transpose(1, 2)


class VisionEncoder(nn.Module):
    """A vision transformer that returns patch features without a final norm."""

    def __init__(self, config: VisionEncoderConfig):
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

    def forward(
        self, image: Tensor, sample: PatchSample | None = None, language: Tensor | None = None
    ) -> Tensor:
        """Normalised [B, 3, H, W] -> [B, patches, width].

        sample: run on these patches alone; None: all.
        language: [B, language width], what modulates the features if the vision encoder is FiLM.
        """
        x = self.patch_embed(image) + self.pos_embed
        if sample is not None:
            x = sample.gather(x)
        prefix = [
            getattr(self, name).expand(len(x), -1, -1)
            for name in ('cls_token', 'reg_token')
            if hasattr(self, name)
        ]
        rows = x.shape[1]
        x = torch.cat([*prefix, x], dim=1)
        mask = None if sample is None else sample.mask(x.shape[1] - rows).to(x.dtype)
        for block in self.blocks:
            x = block(x, language, mask)
        return x[:, -rows:]


class VisionBackbone(nn.Module):
    """Both vision encoders on the same images, their features side by side."""

    def __init__(self, dino: VisionEncoderConfig, siglip: VisionEncoderConfig):
        super().__init__()
        self.featurizer = VisionEncoder(dino)
        self.fused_featurizer = VisionEncoder(siglip)

    def forward(
        self, pixels: Tensor, sample: PatchSample | None = None, language: Tensor | None = None
    ) -> Tensor:
        """[B, 6, H, W], DINO-normalised RGB then SigLIP-normalised -> [B, patches, both]."""
        dino, siglip = pixels.split(3, dim=1)
        # Neither vision encoder fills a GPU. In a CUDA graph, where launching costs nothing, they
        # share it.
        if pixels.is_cuda and torch.cuda.is_current_stream_capturing():
            main, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(main)
            with torch.cuda.stream(side):
                siglip = self.fused_featurizer(siglip, sample, language)
            dino = self.featurizer(dino, sample, language)
            main.wait_stream(side)
        else:
            siglip = self.fused_featurizer(siglip, sample, language)
            dino = self.featurizer(dino, sample, language)
        return torch.cat([dino, siglip], dim=-1)


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
