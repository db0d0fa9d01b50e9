"""Reads `config.json`, which may be anybody's, into the sizes of a policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from vla_policy_node.checkpoints.entries import REQUIRED, Entries, is_number
from vla_policy_node.checkpoints.reading import shown
from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.nn.config import (
    DecoderConfig,
    DitConfig,
    FamilyTraits,
    ModelConfig,
    TokenIds,
    VisionEncoderConfig,
)

# More than any published policy has of them, and little enough to count before anything is built.
MAX_LAYERS = 512
MAX_WIDTH = 1 << 17
MAX_VOCABULARY = 1_000_000
EPS = 1e-15, 0.1  # of norms, from and to
CAMERAS = 2  # that a policy has names for

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


def read_sizes(document: Mapping, family: FamilyTraits) -> ModelConfig:
    """Turn a parsed `config.json` into the sizes of a policy of this family.

    Public checkpoints name their vision encoders; small ones spell the sizes out under
    `vision_tiny`, `text_config` and `tiny_token_ids`. ValueError for an architecture not known,
    and for sizes that no policy has: whoever builds a model of a ModelConfig need not ask again.
    """
    entries = Entries(document, 'config.json')
    encoders = entries.inside('vision_tiny', _public_encoders(entries))
    language_model = _language_model(entries)
    vocabulary = language_model.vocabulary
    padding = entries.integer('pad_to_multiple_of', 0, vocabulary - 1, min(64, vocabulary - 1))
    config = ModelConfig(
        dino=_encoder(encoders.inside('featurizer')),
        siglip=_encoder(encoders.inside('fused_featurizer')),
        language_model=language_model,
        token_ids=_token_ids(entries.inside('tiny_token_ids', {}), vocabulary),
        family=family,
        chunk_length=entries.integer('chunk_length', 1, 1000, 8),
        center_crop=entries.flag('center_crop', True),
        action_rows=entries.word('action_rows', ('', 'oft', 'last56'), ''),
        trained=entries.flag('trained', True),
        proprio=entries.flag('proprio', True),
        cameras=entries.integer('cameras', 1, CAMERAS, CAMERAS),
        action_bins=entries.integer('n_action_bins', 2, 1 << 16, 256),
        action_ids_end=vocabulary - padding,
        diffusion_steps=entries.integer('diffusion_steps', 1, 1000, 50),
        dit=_dit(entries.inside('dit')) if 'dit' in entries else None,
        method_settings=_method_settings(entries.inside('method_settings', {})),
    )
    if config.can(Capability.DENOISING) != (config.dit is not None):
        raise ValueError(
            "config.json must give the sizes of the head 'cogact' under 'dit', and of no other.")
    if (config.dino.image_px, config.dino.grid) != (config.siglip.image_px, config.siglip.grid):
        raise ValueError(
            'config.json gives the two vision encoders different images or patches; both see the '
            'same image, cut in the same way.'
        )
    return config


def check_room(config: ModelConfig) -> None:
    """Raise ValueError if images and actions leave no room for a prompt in the sequence."""
    rows, room = config.visual_tokens + config.other_rows, config.language_model.context_length
    if rows >= room:
        raise ValueError(
            f'config.json describes {rows} rows of images and actions, and its llm_max_length is '
            f'{room}; take the file that belongs to the weights.'
        )


def _public_encoders(entries: Entries) -> Mapping | None:
    if 'vision_tiny' in entries:
        return None
    backbone = entries.value('vision_backbone_id', None)
    if backbone != 'dinosiglip-vit-so-224px':
        raise ValueError(
            f'config.json names the vision backbone {shown(backbone)}; only '
            "'dinosiglip-vit-so-224px' or explicit sizes under 'vision_tiny' can be loaded."
        )
    return _DINOSIGLIP_224


def _encoder(sizes: Entries) -> VisionEncoderConfig:
    width, heads = _width_and_heads(sizes, 'embed_dim', 'num_heads')
    image_px = sizes.integer('img_size', 1, 2048)
    return VisionEncoderConfig(
        width=width,
        blocks=sizes.integer('feature_block', 0, MAX_LAYERS - 1) + 1,
        heads=heads,
        mlp_width=sizes.integer('mlp_hidden', 1, MAX_WIDTH),
        patch_px=sizes.integer('patch_size', 1, image_px),
        image_px=image_px,
        class_token=sizes.flag('class_token'),
        register_tokens=sizes.integer('num_reg_tokens', 0, 64),
        layer_scale=sizes.flag('layer_scale'),
        norm_eps=sizes.number('norm_eps', *EPS, 1e-6),
    )


def _language_model(entries: Entries) -> DecoderConfig:
    text, default = entries.inside('text_config', {}), DecoderConfig()
    width, heads = _width_and_heads(
        text, 'hidden_size', 'num_attention_heads', default.width, default.heads)
    if text.value('num_key_value_heads', heads) != heads or text.value('rope_scaling', None):
        raise ValueError(
            'config.json describes a Llama with grouped key-value heads or scaled rotary '
            'positions; only the attention of Llama-2-7B can be loaded.'
        )
    if width // heads % 2:
        raise text.error(
            'num_attention_heads', f'a number that divides {width} into even widths', heads)
    context = entries if 'llm_max_length' in entries else text
    return DecoderConfig(
        width=width,
        layers=text.integer('num_hidden_layers', 1, MAX_LAYERS, default.layers),
        heads=heads,
        mlp_width=text.integer('intermediate_size', 1, MAX_WIDTH, default.mlp_width),
        vocabulary=text.integer('vocab_size', 2, MAX_VOCABULARY, default.vocabulary),
        norm_eps=text.number('rms_norm_eps', *EPS, default.norm_eps),
        rope_theta=text.number('rope_theta', 1, 1e9, default.rope_theta),
        context_length=context.integer('llm_max_length', 1, 1 << 17, default.context_length),
    )


def _width_and_heads(
    sizes: Entries, width_key: str, heads_key: str, width: object = REQUIRED,
    heads: object = REQUIRED,
) -> tuple[int, int]:
    width = sizes.integer(width_key, 4, MAX_WIDTH, width)
    heads = sizes.integer(heads_key, 1, width, heads)
    if width % heads:
        raise sizes.error(heads_key, f'a divisor of {sizes.name_of(width_key)}, {width}', heads)
    return width, heads


def _token_ids(ids: Entries, vocabulary: int) -> TokenIds:
    return TokenIds(**{
        field.name: ids.integer(field.name, 0, vocabulary - 1, field.default)
        for field in fields(TokenIds)
    })


def _dit(sizes: Entries) -> DitConfig:
    default = DitConfig()
    sizes.only(*(field.name for field in fields(DitConfig)))
    width, heads = _width_and_heads(sizes, 'width', 'heads', default.width, default.heads)
    steps = sizes.integer('training_steps', 1, 1000, default.training_steps)
    return DitConfig(
        blocks=sizes.integer('blocks', 1, MAX_LAYERS, default.blocks),
        width=width,
        heads=heads,
        training_steps=steps,
        denoising_steps=sizes.integer(
            'denoising_steps', 1, steps, min(default.denoising_steps, steps)),
        guidance=sizes.number('guidance', 0, 100, default.guidance),
    )


def _method_settings(entries: Entries) -> dict[str, dict[str, object]]:
    settings: dict[str, dict[str, object]] = {}
    for method in entries.names():
        chosen = entries.inside(method)
        settings[method] = {name: chosen.value(name) for name in chosen.names()}
        for name, value in settings[method].items():
            if not isinstance(value, (bool, str)) and not (
                is_number(value) and abs(value) <= 1e12
            ):
                raise chosen.error(name, 'true, false, a string or a number up to 1e12', value)
    return settings
