"""Sizes of the Prismatic policies, and how a `config.json` in the public layout becomes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vla_policy_node.checkpoints.config_file import (
    EPS,
    MAX_LAYERS,
    MAX_VOCABULARY,
    MAX_WIDTH,
    read_common,
    read_encoder,
    width_and_heads,
)
from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.reading import shown
from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.nn.config import (
    DitConfig,
    FamilyTraits,
    ModelConfig,
    TokenIds,
    VisionEncoderConfig,
)
from vla_policy_node.nn.transformer import DecoderConfig
from vla_policy_node.policy.interface import PolicySpec, Quantity

# OpenVLA-OFT on ALOHA, in the order of its data (openvla-oft, prismatic/vla/constants.py): joints
# of the left arm, its gripper, those of the right one; `config/contracts/two_arms.yaml`.
_JOINTS = ('waist', 'shoulder', 'elbow', 'forearm_roll', 'wrist_angle', 'wrist_rotate')
_TWO_ARMS = tuple(
    quantity for side in ('left', 'right')
    for quantity in (*(Quantity(f'{side}_{joint}', 'rad') for joint in _JOINTS),
                     Quantity(f'{side}_gripper', 'share')))
_ALOHA = {
    'spec': PolicySpec(('high', 'left_wrist', 'right_wrist'), _TWO_ARMS, _TWO_ARMS),
    'chunk_length': 25,
    'ranges': 'min_max',
}

# OpenVLA-OFT on BridgeData V2, in the order of its data: position, fixed-axis angles, gripper.
_POSE = tuple(Quantity(name, unit) for name, unit in zip(
    ('x', 'y', 'z', 'roll', 'pitch', 'yaw', 'gripper_opening'),
    (*['m'] * 3, *['rad'] * 3, 'share'), strict=True))
_BRIDGE = {'spec': PolicySpec(state=_POSE), 'chunk_length': 5}

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


@dataclass(frozen=True, kw_only=True)
class PrismaticConfig(ModelConfig):
    """Two vision encoders, a Llama, and what their families put behind them.

    action_bins, action_ids_end: heads that predict tokens divide [-1, 1] into so many bins; the
        ids count down from the end of the tokenizer's vocabulary, which padding follows.
    diffusion_steps: denoising steps, of training and of inference, of OpenVLA-OFT's diffusion.
    dit: the action head of CogACT, which no other policy has.
    """

    dino: VisionEncoderConfig
    siglip: VisionEncoderConfig
    token_ids: TokenIds
    center_crop: bool = True
    action_bins: int = 256
    action_ids_end: int = 32000
    diffusion_steps: int = 50
    dit: DitConfig | None = None

    @property
    def image_px(self) -> int:
        """Side of the square images that both vision encoders take."""
        return self.dino.image_px

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of visual tokens per camera."""
        return self.dino.grid

    @property
    def feature_widths(self) -> tuple[int, ...]:
        """Those of DINOv2 and SigLIP."""
        return self.dino.width, self.siglip.width

    @property
    def rows_read(self) -> int:
        """Rows of the last layer that the action head reads: the slots, or the cognition token."""
        return self.action_slots or 1

    @property
    def decoder_runs(self) -> int:
        """How often all rows go through the decoder in one inference."""
        return self.diffusion_steps if self.family.step_rows else 1

    @property
    def state_rows(self) -> int:
        """Rows between visual tokens and prompt: proprio, and the step of a diffusion head."""
        return self.proprio + self.family.step_rows

    @property
    def other_rows(self) -> int:
        """Sequence rows that are neither visual tokens nor prompt."""
        return self.action_slots + self.state_rows + self.family.end_rows

    @property
    def least_weights(self) -> int:
        """Values in the large matrices of vision encoders and decoder: less than the model has."""
        return super().least_weights + self.dino.least_weights + self.siglip.least_weights

    @property
    def vision_reads_prompt(self) -> bool:
        """Whether the prompt modulates the vision encoders (FiLM)."""
        return self.dino.language_width > 0

    @property
    def pad_id(self) -> int:
        """The id that fills up the shorter prompts of a training batch."""
        return self.token_ids.pad

    @property
    def architecture(self) -> str:
        """One line for logs and reports."""
        encoders = ' + '.join(
            f'{name} {encoder.blocks}x{encoder.width}'
            for name, encoder in (('DINOv2', self.dino), ('SigLIP', self.siglip))
        )
        decoder = self.language_model
        film = ' with FiLM' if self.vision_reads_prompt else ''
        head = self.family.head + (f' {self.dit.blocks}x{self.dit.width}' if self.dit else '')
        return (f'{self.family.family}: {encoders}{film}, Llama {decoder.layers}x{decoder.width}, '
                f'{head}')


def read_sizes(document: Mapping, family: FamilyTraits) -> PrismaticConfig:
    """Turn a parsed `config.json` into the sizes of a policy of this family.

    Public checkpoints name their vision encoders; small ones spell the sizes out under
    `vision_tiny`, `text_config` and `tiny_token_ids`. ValueError for an architecture not known,
    and for sizes that no policy has: whoever builds a model of these sizes need not ask again.
    """
    entries = Entries(document, 'config.json')
    encoders = entries.inside('vision_tiny', _public_encoders(entries))
    language_model = _language_model(entries)
    vocabulary = language_model.vocabulary
    padding = entries.integer('pad_to_multiple_of', 0, vocabulary - 1, min(64, vocabulary - 1))
    config = PrismaticConfig(
        **read_common(entries, family, **_platform(entries)),
        dino=read_encoder(encoders.inside('featurizer')),
        siglip=read_encoder(encoders.inside('fused_featurizer')),
        language_model=language_model,
        token_ids=_token_ids(entries.inside('tiny_token_ids', {}), vocabulary),
        center_crop=entries.flag('center_crop', True),
        action_rows=entries.word('action_rows', ('', 'oft', 'last56'), ''),
        action_bins=entries.integer('n_action_bins', 2, 1 << 16, 256),
        action_ids_end=vocabulary - padding,
        diffusion_steps=entries.integer('diffusion_steps', 1, 1000, 50),
        dit=_dit(entries.inside('dit')) if 'dit' in entries else None,
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


def _platform(entries: Entries) -> dict[str, Any]:
    """What OpenVLA-OFT's code takes for granted of a robot with such a state and such actions."""
    sizes = [entries.value(key, 0) for key in ('actions', 'state')]
    if sizes[1] == 7 and sizes[0] in (0, 7):
        return _BRIDGE  # which numbers with names of their own are not
    sizes = [len(size) if isinstance(size, list) else size for size in sizes]
    return _ALOHA if sizes == [14, 14] else {}


def _public_encoders(entries: Entries) -> Mapping | None:
    if 'vision_tiny' in entries:
        return None
    backbone = entries.value('vision_backbone_id', None)
    if backbone != 'dinosiglip-vit-so-224px':
        raise ValueError(
            f'config.json names the vision backbone {shown(backbone)}; only '
            "'dinosiglip-vit-so-224px' or explicit sizes under 'vision_tiny' can be loaded, so no "
            'policy with one vision encoder, as OpenVLA v0.1 has.'
        )
    return _DINOSIGLIP_224


def _language_model(entries: Entries) -> DecoderConfig:
    text, default = entries.inside('text_config', {}), DecoderConfig()
    width, heads = width_and_heads(
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


def _token_ids(ids: Entries, vocabulary: int) -> TokenIds:
    return TokenIds(**{
        field.name: ids.integer(field.name, 0, vocabulary - 1, field.default)
        for field in fields(TokenIds)
    })


def _dit(sizes: Entries) -> DitConfig:
    default = DitConfig()
    sizes.only(*(field.name for field in fields(DitConfig)))
    width, heads = width_and_heads(sizes, 'width', 'heads', default.width, default.heads)
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
