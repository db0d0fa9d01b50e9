"""Sizes of SmolVLA: what its config.json says, and what only its weights and its backbone do.

LeRobot's config.json names the backbone and says nothing of its sizes. Shapes of the weights tell
all of them but how many heads there are: the backbone's own config.json does if it is there, else
the public name, whose heads are 64 wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vla_policy_node.checkpoints.config_file import (
    MAX_IMAGE_PX,
    MAX_LAYERS,
    MAX_VOCABULARY,
    MAX_WIDTH,
    read_common,
)
from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.lerobot_features import read_features
from vla_policy_node.checkpoints.reading import shown
from vla_policy_node.nn.config import FamilyTraits, ModelConfig, VisionEncoderConfig
from vla_policy_node.nn.flow import PERIODS
from vla_policy_node.nn.siglip import siglip_config
from vla_policy_node.nn.transformer import DecoderConfig

Frame = tuple[tuple[int, ...], tuple[int, ...]]  # ids before and behind each picture
SIZES = 'sizes'  # entry of config.json for sizes that neither weights nor backbone tell
EPS = 1e-5  # of the decoders' norms
ROPE_THETA = 10_000.0  # the policy's own, not that of its backbone
MAX_CHUNK = 1000
MAX_STEPS = 1000
PAD_ID = 2  # `<|im_end|>`

_SIGLIP_B = {'width': 768, 'blocks': 12, 'heads': 12, 'mlp_width': 3072, 'patch_px': 16,
             'image_px': 512}
# Public backbones by the last part of their names, with all layers that they have.
BACKBONES: Mapping[str, Mapping] = {
    'SmolVLM2-500M-Video-Instruct': {
        'vision': _SIGLIP_B, 'pixel_shuffle': 4,
        'text': {'width': 960, 'layers': 32, 'heads': 15, 'key_heads': 5, 'mlp_width': 2560,
                 'vocabulary': 49280}},
    'SmolVLM2-256M-Video-Instruct': {
        'vision': _SIGLIP_B, 'pixel_shuffle': 4,
        'text': {'width': 576, 'layers': 30, 'heads': 9, 'key_heads': 3, 'mlp_width': 1536,
                 'vocabulary': 49280}},
}


@dataclass(frozen=True, kw_only=True)
class SmolVlaConfig(ModelConfig):
    """What every policy has, a vision encoder and an action expert.

    pixel_shuffle: side, in patches, of the block that becomes one visual token.
    expert_width, expert_mlp_width: the expert has as many layers and heads as the language model.
    crossing: which layers of the expert read the language model only.
    action_room, state_room: numbers of an action and a state as the network has them, of which
        the robot's are the first and the others zero.
    denoising_steps: Euler steps of an inference. periods: of the waves that tell the time.
    chunk_room: actions of a chunk in training, of which an answer may be the first few.
    words: most ids of a prompt. frame: ids before and behind each picture; none in most policies.
    """

    vision: VisionEncoderConfig
    pixel_shuffle: int
    expert_width: int
    expert_mlp_width: int
    crossing: tuple[bool, ...]
    action_room: int = 32
    state_room: int = 32
    denoising_steps: int = 10
    periods: tuple[float, float] = PERIODS
    words: int = 48
    chunk_room: int = 50
    frame: Frame = ((), ())

    @property
    def expert(self) -> DecoderConfig:
        """Sizes of the expert, whose layers go with those of the language model."""
        return replace(
            self.language_model, width=self.expert_width, mlp_width=self.expert_mlp_width,
            vocabulary=0, embedding_scale=1.0)

    @property
    def image_px(self) -> int:
        """Side of the pictures."""
        return self.vision.image_px

    @property
    def grid(self) -> tuple[int, int]:
        """One visual token per block of patches."""
        rows, columns = self.vision.grid
        return rows // self.pixel_shuffle, columns // self.pixel_shuffle

    @property
    def other_rows(self) -> int:
        """The state, and what frames pictures; actions are rows of the expert."""
        return 1 + self.cameras * sum(map(len, self.frame))

    @property
    def rows_read(self) -> int:
        """The expert reads keys and values."""
        return 0

    @property
    def pad_id(self) -> int:
        """No word of any prompt."""
        return min(PAD_ID, self.language_model.vocabulary - 1)

    @property
    def architecture(self) -> str:
        """For logs and reports."""
        vision, text = self.vision, self.language_model
        return (f'{self.family.family}: SigLIP {vision.blocks}x{vision.width}, SmolLM '
                f'{text.layers}x{text.width}, {self.family.head} {text.layers}x'
                f'{self.expert_width}, {self.denoising_steps} steps')

    @property
    def least_weights(self) -> int:
        """Values in the large matrices: fewer than the model has."""
        return super().least_weights + self.vision.least_weights


def read_sizes(
    document: Mapping, family: FamilyTraits, frame: Frame = ((), ())
) -> SmolVlaConfig:
    """Turn a parsed config.json into sizes; `SIZES` in it are those of weights and backbone.

    frame: ids around each picture, where the file asks for them. ValueError for what cannot be.
    """
    entries = Entries(document, 'config.json')
    spec = read_features(entries)
    chunk = entries.integer('chunk_size', 1, MAX_CHUNK, 50)
    common = read_common(entries, family, spec, chunk)
    if common['chunk_length'] > chunk:
        raise entries.error('chunk_length', f'at most the chunk_size {chunk}',
                            common['chunk_length'])
    sizes = entries.inside(SIZES, None if SIZES in entries else _sizes_by_name(entries))
    text = _text(sizes.inside('text'))
    _refuse_others(entries, text.layers)
    vision, shuffle = _vision(sizes.inside('vision')), sizes.integer('pixel_shuffle', 1, 64)
    side = vision.grid[0]
    if vision.image_px % vision.patch_px or side % shuffle:
        raise sizes.error('pixel_shuffle', f'a divisor of {side} patches', shuffle)
    width = int(text.width * entries.number('expert_width_multiplier', 0.01, 8, 0.75))
    expert = sizes.inside('expert', {})
    config = SmolVlaConfig(
        **common, language_model=text, vision=vision, pixel_shuffle=shuffle,
        expert_width=expert.integer('width', 2, MAX_WIDTH, width),
        expert_mlp_width=expert.integer('mlp_width', 1, MAX_WIDTH, _mlp_width(width)),
        crossing=_crossing(entries, text.layers),
        action_room=entries.integer('max_action_dim', 1, 4096, 32),
        state_room=entries.integer('max_state_dim', 1, 4096, 32),
        denoising_steps=entries.integer('num_steps', 1, MAX_STEPS, 10),
        periods=(entries.number('min_period', 1e-6, 1e6, PERIODS[0]),
                 entries.number('max_period', 1e-6, 1e6, PERIODS[1])),
        words=entries.integer('tokenizer_max_length', 1, 4096, 48),
        chunk_room=chunk, frame=frame)
    _check_room(entries, config)
    rows = config.visual_tokens + config.other_rows + config.words
    return replace(config, language_model=replace(text, context_length=rows))


def _refuse_others(entries: Entries, layers: int) -> None:
    """What LeRobot can be told and nobody trained, or what is another network."""
    expert = entries.integer('num_expert_layers', -1, MAX_LAYERS, -1)
    if expert > 0 and expert != layers:
        raise ValueError(
            f'config.json asks for {expert} layers of the expert beside {layers} of the language '
            'model; a SmolVLA here has as many of both (num_expert_layers 0).')
    entries.word('attention_mode', ('cross_attn', 'self_attn'), 'cross_attn')


def public_backbone(name: object) -> Mapping | None:
    """Sizes of a public backbone, whoever has a copy of it and in whatever folder."""
    return BACKBONES.get(str(name).rstrip('/').rpartition('/')[2])


def unknown_backbone(name: object) -> ValueError:
    """What to raise where nothing tells the sizes."""
    return ValueError(
        f'config.json names the backbone {shown(name)}, and nothing here tells its sizes; put its '
        'config.json into a folder vlm_backbone inside of the checkpoint.')


def _sizes_by_name(entries: Entries) -> Mapping:
    """Public sizes of the backbone that config.json names."""
    name = entries.word('vlm_model_name', default='')
    known = public_backbone(name)
    if known is None:
        raise unknown_backbone(name)
    layers = entries.integer('num_vlm_layers', -1, MAX_LAYERS, 16)
    if 0 < layers <= known['text']['layers']:
        return {**known, 'text': {**known['text'], 'layers': layers}}
    return known


def _text(text: Entries) -> DecoderConfig:
    width = text.integer('width', 2, MAX_WIDTH)
    heads = text.integer('heads', 1, MAX_WIDTH)
    key_heads = text.integer('key_heads', 1, heads)
    head_width = text.integer('head_width', 2, MAX_WIDTH, 64)
    if heads % key_heads or head_width % 2:
        raise text.error('key_heads', f'a divisor of {heads} heads of even width', key_heads)
    return DecoderConfig(
        width=width, heads=heads, key_heads=key_heads, head_width=head_width,
        layers=text.integer('layers', 1, MAX_LAYERS),
        mlp_width=text.integer('mlp_width', 1, MAX_WIDTH),
        vocabulary=text.integer('vocabulary', 2, MAX_VOCABULARY),
        norm_eps=EPS, rope_theta=ROPE_THETA, embedding_scale=width**0.5)


def _vision(sizes: Entries) -> VisionEncoderConfig:
    width = sizes.integer('width', 1, MAX_WIDTH)
    heads = sizes.integer('heads', 1, width)
    if width % heads:
        raise sizes.error('heads', f'a divisor of {width}', heads)
    image_px = sizes.integer('image_px', 1, MAX_IMAGE_PX)
    return siglip_config(
        width, sizes.integer('blocks', 1, MAX_LAYERS), heads,
        sizes.integer('mlp_width', 1, MAX_WIDTH),
        sizes.integer('patch_px', 1, image_px), image_px)


def _mlp_width(width: int) -> int:
    """Of a gated MLP as LeRobot sizes it: 4 * 2 / 3 of the width, in blocks of 256."""
    return -(-4 * int(2 * width / 3) // 256) * 256


def _crossing(entries: Entries, layers: int) -> tuple[bool, ...]:
    """Which layers of the expert read the language model only: all but every n-th."""
    every = entries.integer('self_attn_every_n_layers', -1000, 1000, 2)
    crosses = entries.word('attention_mode', default='cross_attn') == 'cross_attn'
    return tuple(
        crosses and not (every > 0 and index % every == 0) for index in range(layers))


def _check_room(entries: Entries, config: SmolVlaConfig) -> None:
    for name, size, key in (('state', config.proprio_size, 'max_state_dim'),
                            ('action', config.action_size, 'max_action_dim')):
        room = config.state_room if name == 'state' else config.action_room
        if size > room:
            raise entries.error(key, f'at least {size}, the numbers of the {name}', room)
    if not config.proprio_size:
        raise ValueError(
            'config.json describes a SmolVLA without observation.state, and its network has a '
            'row for the state; take the file that belongs to the weights.')
    side = entries.value('resize_imgs_with_padding', [config.image_px] * 2)
    if side != [config.image_px] * 2:
        raise entries.error(
            'resize_imgs_with_padding', f'[{config.image_px}, {config.image_px}], what the '
            'vision encoder takes', side)
