"""Sizes of a policy, read from the `config.json` of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ACTION_DIMENSION = 7
PROPRIO_DIMENSION = 8
# How hidden states become actions. 'l1', 'discrete' and 'diffusion' are those of OpenVLA-OFT,
# 'autoregressive' is OpenVLA before it: token by token, one step per inference.
HEADS = {
    'l1': 'L1 head',
    'discrete': 'discrete head',
    'diffusion': 'diffusion head',
    'autoregressive': 'autoregressive, one camera',
}


@dataclass(frozen=True)
class TowerConfig:
    """One vision transformer, up to the block whose output is used."""

    width: int
    blocks: int  # blocks to run: the feature block and those before it
    heads: int
    mlp_width: int
    patch_px: int
    image_px: int
    class_token: bool
    register_tokens: int
    layer_scale: bool
    norm_eps: float = 1e-6
    language_width: int = 0  # of the text that modulates the features (FiLM); 0: none does

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in one image."""
        side = self.image_px // self.patch_px
        return side, side


@dataclass(frozen=True)
class LanguageModelConfig:
    """A Llama decoder; the defaults are those of Llama-2-7B in the transformers library."""

    width: int = 4096
    layers: int = 32
    heads: int = 32
    mlp_width: int = 11008
    vocabulary: int = 32064
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    context_length: int = 2048


@dataclass(frozen=True)
class TokenIds:
    """Special ids; the defaults are those of the Llama-2 tokenizer as OpenVLA uses it.

    empty: the id that training put between the prompt and the action tokens.
    pad: fills up the shorter prompts of a training batch.
    """

    bos: int = 1
    stop: int = 2
    empty: int = 29871
    pad: int = 32000


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides shapes and meaning of a checkpoint's tensors.

    action_rows: rows whose hidden states the action head reads, '' if the file does not say
        (see `models.openvla_oft.ACTION_ROWS`).
    trained: False only where the file says that the weights are random.
    head: one of HEADS; `models.checkpoint.read_model_config` recognises it from the files.
    proprio: whether the robot's state is a row of the sequence.
    cameras: how many images, the first one third-person.
    action_bins, action_ids_end: heads that predict tokens divide [-1, 1] into so many bins; the
        ids count down from the end of the tokenizer's vocabulary, which padding follows.
    diffusion_steps: denoising steps, of training and of inference.
    method_settings: method -> setting -> value, what acceleration methods were trained with.
    """

    dino: TowerConfig
    siglip: TowerConfig
    language_model: LanguageModelConfig
    token_ids: TokenIds
    chunk_length: int = 8
    center_crop: bool = True
    action_rows: str = ''
    trained: bool = True
    head: str = 'l1'
    proprio: bool = True
    cameras: int = 2
    action_bins: int = 256
    action_ids_end: int = 32000
    diffusion_steps: int = 50
    method_settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict, hash=False)

    @property
    def image_px(self) -> int:
        """Side of the square images that both towers take."""
        return self.dino.image_px

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of visual tokens per camera."""
        return self.dino.grid

    @property
    def action_slots(self) -> int:
        """Sequence rows reserved for the chunk: one per action dimension and time step."""
        return self.chunk_length * ACTION_DIMENSION

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of all cameras."""
        return self.cameras * self.grid[0] * self.grid[1]

    @property
    def other_rows(self) -> int:
        """Sequence rows that are neither visual tokens nor prompt."""
        if self.head == 'autoregressive':
            return self.action_slots
        return self.action_slots + self.proprio + (self.head == 'diffusion') + 1

    @property
    def film(self) -> bool:
        """Whether the prompt modulates the vision towers."""
        return self.dino.language_width > 0

    @property
    def architecture(self) -> str:
        """One line for logs and reports."""
        towers = ' + '.join(
            f'{name} {tower.blocks}x{tower.width}'
            for name, tower in (('DINOv2', self.dino), ('SigLIP', self.siglip))
        )
        decoder = self.language_model
        name = 'OpenVLA' if self.head == 'autoregressive' else 'OpenVLA-OFT'
        film = ' with FiLM' if self.film else ''
        return (
            f'{name}: {towers}{film}, Llama {decoder.layers}x{decoder.width}, {HEADS[self.head]}'
        )


def read_config(document: Mapping) -> ModelConfig:
    """Turn a parsed `config.json` into sizes; raise ValueError for an architecture not known.

    Public checkpoints name their towers; small ones spell the sizes out under `vision_tiny`,
    `text_config` and `tiny_token_ids`.
    """
    towers = document.get('vision_tiny') or _public_towers(document)
    token_ids = document.get('tiny_token_ids', {})
    language_model = _language_model(document)
    config = ModelConfig(
        dino=_tower(towers['featurizer']),
        siglip=_tower(towers['fused_featurizer']),
        language_model=language_model,
        token_ids=TokenIds(**_present(token_ids, 'bos', 'stop', 'empty', 'pad')),
        action_bins=document.get('n_action_bins', 256),
        action_ids_end=language_model.vocabulary - document.get('pad_to_multiple_of', 64),
        **_present(document, *_OWN_KEYS),
    )
    if config.head not in HEADS:
        raise ValueError(
            f'config.json names the head {config.head!r}; it must be one of {", ".join(HEADS)}.'
        )
    return config


def _present(document: Mapping, *keys: str) -> dict:
    return {key: document[key] for key in keys if key in document}


def _public_towers(document: Mapping) -> Mapping:
    backbone = document.get('vision_backbone_id')
    if backbone != 'dinosiglip-vit-so-224px':
        raise ValueError(
            f'config.json names the vision backbone {backbone!r}; only '
            "'dinosiglip-vit-so-224px' or explicit sizes under 'vision_tiny' can be loaded."
        )
    return _DINOSIGLIP_224


def _tower(sizes: Mapping) -> TowerConfig:
    return TowerConfig(
        width=sizes['embed_dim'],
        blocks=sizes['feature_block'] + 1,
        heads=sizes['num_heads'],
        mlp_width=sizes['mlp_hidden'],
        patch_px=sizes['patch_size'],
        image_px=sizes['img_size'],
        class_token=sizes['class_token'],
        register_tokens=sizes['num_reg_tokens'],
        layer_scale=sizes['layer_scale'],
        norm_eps=sizes.get('norm_eps', 1e-6),
    )


def _language_model(document: Mapping) -> LanguageModelConfig:
    text = dict(document.get('text_config', {}))
    if 'llm_max_length' in document:
        text['llm_max_length'] = document['llm_max_length']
    shared = text.get('num_key_value_heads', text.get('num_attention_heads', 32))
    if shared != text.get('num_attention_heads', 32) or text.get('rope_scaling'):
        raise ValueError(
            'config.json describes a Llama with grouped key-value heads or scaled rotary '
            'positions; only the attention of Llama-2-7B can be loaded.'
        )
    return LanguageModelConfig(
        **{field: text[key] for field, key in _TEXT_KEYS.items() if key in text}
    )


# Entries of config.json that public checkpoints do not have.
_OWN_KEYS = (
    'chunk_length',
    'center_crop',
    'action_rows',
    'trained',
    'head',
    'proprio',
    'cameras',
    'diffusion_steps',
    'method_settings',
)

_TEXT_KEYS = {
    'width': 'hidden_size',
    'layers': 'num_hidden_layers',
    'heads': 'num_attention_heads',
    'mlp_width': 'intermediate_size',
    'vocabulary': 'vocab_size',
    'norm_eps': 'rms_norm_eps',
    'rope_theta': 'rope_theta',
    'context_length': 'llm_max_length',
}

# timm 0.9: vit_large_patch14_reg4_dinov2 (24 blocks) and vit_so400m_patch14_siglip_224 (27).
# Prismatic takes the features of the second-to-last block.
_DINOSIGLIP_224 = {
    'featurizer': {
        'embed_dim': 1024,
        'feature_block': 22,
        'num_heads': 16,
        'mlp_hidden': 4096,
        'patch_size': 14,
        'img_size': 224,
        'class_token': True,
        'num_reg_tokens': 4,
        'layer_scale': True,
    },
    'fused_featurizer': {
        'embed_dim': 1152,
        'feature_block': 25,
        'num_heads': 16,
        'mlp_hidden': 4304,
        'patch_size': 14,
        'img_size': 224,
        'class_token': False,
        'num_reg_tokens': 0,
        'layer_scale': False,
    },
}
