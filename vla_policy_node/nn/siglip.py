"""SigLIP as SmolVLM2 and PaliGemma have it: GELU by tanh, a norm at the end, no token but patches.

Zhai et al. 2023, arXiv 2303.15343. Query, key and value are layers of their own here, as in the
files of `transformers`, whose names `file_name` gives. `nn.vision` has the form of timm, which
runs up to the second-to-last block.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from vla_policy_node.nn import initial
from vla_policy_node.nn.config import VisionEncoderConfig
from vla_policy_node.nn.vision import Mlp, PatchSample


def siglip_config(
    width: int, blocks: int, heads: int, mlp_width: int, patch_px: int, image_px: int
) -> VisionEncoderConfig:
    """Sizes of a SigLIP, of which all blocks run."""
    return VisionEncoderConfig(
        width, blocks, heads, mlp_width, patch_px, image_px, class_token=False,
        register_tokens=0, layer_scale=False)


class SiglipAttention(nn.Module):
    """Multi-head self-attention over all patches of one image."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, width] -> [B, T, width]; the mask is added to the logits."""
        query, key, value = (
            projection(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj))
        mixed = functional.scaled_dot_product_attention(query, key, value, mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class SiglipBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: VisionEncoderConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.self_attn = SiglipAttention(config.width, config.heads)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config.width, config.mlp_width, approximate='tanh')

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class Siglip(nn.Module):
    """Pictures to features of their patches."""

    def __init__(self, config: VisionEncoderConfig):
        super().__init__()
        rows, columns = config.grid
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch_px, config.patch_px)
        self.position_embedding = nn.Embedding.from_pretrained(
            initial.normal(rows * columns, config.width), freeze=False)
        self.layers = nn.ModuleList(SiglipBlock(config) for _ in range(config.blocks))
        self.post_layernorm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, image: Tensor, sample: PatchSample | None = None) -> Tensor:
        """[B, 3, H, W] from -1 to 1 -> [B, patches, width], row by row.

        sample: run on these patches alone; None: all.
        """
        x = self.patch_embedding(image).flatten(2).transpose(1, 2)
        x = x + self.position_embedding.weight
        mask = None
        if sample is not None:
            x, mask = sample.gather(x), sample.mask(0).to(x.dtype)
        for layer in self.layers:
            x = layer(x, mask)
        return self.post_layernorm(x)


def file_name(name: str) -> str:
    """Name of a tensor of `Siglip` in the files of `transformers`, below `vision_model.`."""
    part = name.partition('.')[0]
    return {'patch_embedding': 'embeddings.', 'position_embedding': 'embeddings.',
            'layers': 'encoder.'}.get(part, '') + name


def shuffle_pixels(x: Tensor, factor: int) -> Tensor:
    """Put blocks of patches into one token each: [B, n n, C] -> [B, n n / f f, f f C].

    Inside of a token the patches of its block come row by row, as in SmolVLM2's connector.
    """
    side = round(x.shape[1] ** 0.5)
    blocks = x.unflatten(1, (side // factor, factor, side // factor, factor))
    return blocks.transpose(2, 3).flatten(3).flatten(1, 2)
