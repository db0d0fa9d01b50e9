"""Sizes of pi0 and pi0.5, read from config.json and from the shapes of the weights.

config.json is LeRobot's (`"type": "pi0"`) or openpi's, which has five entries and no type. Widths
are in neither: published policies have those of gemma_2b and gemma_300m, and what the files hold
decides. `tiny_sizes.json` may say how many heads there are, which shapes do not tell."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vla_policy_node.checkpoints.adapter import place
from vla_policy_node.checkpoints.config_file import (
    MAX_CAMERAS,
    MAX_IMAGE_PX,
    MAX_NUMBERS,
    read_common,
)
from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.layout import read_json
from vla_policy_node.checkpoints.processors import read_processors
from vla_policy_node.encoding.task_prompt import FORMS
from vla_policy_node.families.pi0_files import SIZES, PiFiles, gemma
from vla_policy_node.nn.config import FamilyTraits, ModelConfig, VisionEncoderConfig
from vla_policy_node.nn.flow import PERIODS
from vla_policy_node.nn.siglip import siglip_config
from vla_policy_node.nn.transformer import DecoderConfig
from vla_policy_node.policy.interface import PolicySpec, Quantity

ROOM = 32  # numbers of an action and a state, in every published policy
MAX_ROOM, MAX_STEPS, MAX_PROMPT = 256, 1000, 4096
# openpi's config.json, where LeRobot's says `type`.
OPENPI = ('paligemma_variant', 'action_expert_variant')
OPENPI_CAMERAS = ('base_0_rgb', 'left_wrist_0_rgb', 'right_wrist_0_rgb')
_OLDER_PICTURES = 'resize_imgs_with_padding'
_PICTURES, _EMPTY = re.compile(r'observation\.images?(?:\.|$)'), 'empty_camera_'
# Of gemma_2b, gemma_300m and SigLIP So400m.
_LANGUAGE = DecoderConfig(
    width=2048, layers=18, mlp_width=16384, vocabulary=257152, heads=8, head_width=256,
    key_heads=1)
_EXPERT = replace(_LANGUAGE, width=1024, mlp_width=4096, vocabulary=0)
_VISION = {'width': 1152, 'blocks': 27, 'heads': 16, 'mlp_width': 4304, 'patch_px': 14}


@dataclass(frozen=True, kw_only=True)
class Pi0Config(ModelConfig):
    """What every policy has, a vision encoder and an action expert.

    expert: its decoder, with as many layers as the language model.
    action_room, state_room: numbers of an action and a state as the network has them, of which
        the robot's are the first and the others zero; state_room: 0 where the state is words.
    denoising_steps: Euler steps of an inference. accumulated_time: see `nn.flow.flow_times`.
    padding: how pictures are fitted (`encoding.padded`). prompt: form of the words
        (`encoding.task_prompt`). prompt_ids: of a prompt in training, at most.
    names: part of the network -> what the names of its tensors begin with in the files.
    """

    vision: VisionEncoderConfig
    expert: DecoderConfig
    action_room: int = 32
    state_room: int = 32
    denoising_steps: int = 10
    accumulated_time: bool = False
    periods: tuple[float, float] = PERIODS
    padding: str = 'lerobot'
    prompt: str = 'lerobot'
    prompt_ids: int = 48
    names: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def expert_decoder(self) -> DecoderConfig:
        """The expert's, where layers may have been taken out of the language model."""
        return replace(self.expert, layers=self.language_model.layers)

    @property
    def image_px(self) -> int:
        """Side of the pictures."""
        return self.vision.image_px

    @property
    def grid(self) -> tuple[int, int]:
        """One visual token per patch."""
        return self.vision.grid

    @property
    def other_rows(self) -> int:
        """State and actions are rows of the expert."""
        return 0

    @property
    def rows_read(self) -> int:
        """The expert reads keys and values."""
        return 0

    @property
    def pad_id(self) -> int:
        """Fills up prompts of a batch, behind their words."""
        return 0

    @property
    def architecture(self) -> str:
        """For logs and reports."""
        vision, text, expert = self.vision, self.language_model, self.expert
        return (f'{self.family.family}: SigLIP {vision.blocks}x{vision.width}, Gemma '
                f'{text.layers}x{text.width}, expert {text.layers}x{expert.width}, '
                f'{self.denoising_steps} steps')

    @property
    def least_weights(self) -> int:
        """Values in the large matrices: fewer than the model has."""
        expert = self.expert_decoder
        layer = expert.width * (
            2 * expert.query_width + 2 * expert.key_width + 3 * expert.mlp_width)
        return super().least_weights + self.vision.least_weights + expert.layers * layer


def is_openpi(document: Mapping) -> bool:
    """Whether a parsed config.json is of openpi's converter to PyTorch."""
    return 'type' not in document and all(key in document for key in OPENPI)


def is_older(document: Mapping) -> bool:
    """Whether a parsed config.json is of LeRobot before 0.4, which followed other conventions.

    It accumulated the time of the flow, and put pictures into the lower right corner.
    """
    return document.get(_OLDER_PICTURES) is not None


def read_public(document: Mapping, traits: FamilyTraits, adaptive: bool) -> Pi0Config:
    """Sizes of a published policy with such a config.json, whatever weights lie beside it."""
    entries = Entries(document, 'config.json')
    openpi, older = is_openpi(document), is_older(document)
    text, expert = gemma(_LANGUAGE), gemma(_EXPERT)
    chunk = entries.integer('action_horizon' if openpi else 'chunk_size', 1, 1000, 50)
    common = read_common(entries, traits, read_spec(entries, openpi), chunk)
    # Without a state of its own, pi0.5 is told the state in words, or not at all.
    told = entries.flag('discrete_state_input', True)
    if adaptive and not told:
        common['spec'] = replace(common['spec'], state=())
    form = ('state' if told else 'openpi') if adaptive else 'openpi' if openpi else 'lerobot'
    return Pi0Config(
        **common,
        vision=siglip_config(**_VISION, image_px=_side(entries, older)),
        language_model=text,
        expert=replace(expert, condition_width=expert.width if adaptive else 0),
        state_room=0 if adaptive else ROOM,
        denoising_steps=entries.integer(
            'num_steps' if older else 'num_inference_steps', 1, MAX_STEPS, 10),
        accumulated_time=openpi or older,
        periods=(entries.number('min_period', 1e-6, 1e6, PERIODS[0]),
                 entries.number('max_period', 1e-6, 1e6, PERIODS[1])),
        padding='openpi' if openpi else 'smolvla' if older else 'lerobot',
        prompt=entries.word('prompt', tuple(FORMS), form),
        prompt_ids=entries.integer('tokenizer_max_length', 1, MAX_PROMPT, 200 if adaptive else 48),
    )


def _side(entries: Entries, older: bool) -> int:
    """Side of the square pictures."""
    key = _OLDER_PICTURES if older else 'image_resolution'
    size = entries.value(key, [224, 224])
    if not isinstance(size, list) or len(size) != 2 or size[0] != size[1]:
        raise entries.error(key, 'two equal numbers', size)
    return Entries({key: size[0]}, 'config.json').integer(
        key, 1, MAX_IMAGE_PX)


def read_stored(
    directory: Path, config: Pi0Config, files: PiFiles, document: Mapping
) -> Pi0Config:
    """Put in what the other files of the checkpoint say: sizes, names, the form of prompts."""
    sizes = Entries(
        read_json(directory, SIZES) if os.path.lexists(place(directory, SIZES)) else {}, SIZES)
    text, expert = (
        files.decoder(part, sizes.inside(key, {}))
        for part, key in (('language_model', 'paligemma'), ('expert', 'action_expert')))
    alike = ('layers', 'heads', 'head_width', 'key_heads')
    if any(getattr(text, name) != getattr(expert, name) for name in alike):
        raise ValueError(
            f'{directory} has a language model and an action expert with other layers or heads, '
            'and each layer of the expert attends to one of the language model; the files are '
            'not of one checkpoint.')
    room = files.shape('heads', 'action_in_proj.weight', 2)[1]
    states = 0 if files.adaptive else files.shape('heads', 'state_proj.weight', 2)[1]
    vision = files.vision(sizes.inside('vision', {}))
    if max(room, states) > MAX_ROOM:
        raise ValueError(
            f'{directory} has actions of {room} and states of {states} numbers; there are at most '
            f'{MAX_ROOM}.')
    for what, size, most in (('actions', config.action_size, room),
                             ('state', config.proprio_size, states or MAX_ROOM)):
        if size > most:
            raise ValueError(
                f'config.json has {size} numbers under {what}, and the weights have room for '
                f'{most}; the files are not of one checkpoint.')
    return replace(
        config, vision=vision, language_model=text, expert=expert, action_room=room,
        state_room=states, names=files.names, **_of_processors(directory, config, files, document))


def _of_processors(
    directory: Path, config: Pi0Config, files: PiFiles, document: Mapping
) -> dict[str, Any]:
    """How long prompts are, and whether they say more numbers of the state than there are.

    LeRobot filled up the state before it was put into words, until 0.5. It was not yet asked
    whether actions are relative, nor were the two tables of words two tensors.
    """
    processors = read_processors(directory)
    if processors is None:
        return {}
    found: dict[str, Any] = {'prompt_ids': processors.tokens or config.prompt_ids}
    older = not processors.relative_known and not files.untied
    if config.prompt == 'state' and older and 'prompt' not in document:
        found['prompt'] = 'padded state'
    return found


def read_spec(entries: Entries, openpi: bool) -> PolicySpec:
    """Cameras, state and actions where no entry of our own names them."""
    if openpi:
        return PolicySpec(cameras=OPENPI_CAMERAS)
    inputs, outputs = (entries.inside(key, {}) for key in ('input_features', 'output_features'))
    cameras = [_PICTURES.sub('', name) or 'image' for name in inputs.names()
               if _PICTURES.match(name)]
    cameras = [re.sub(r'\W', '_', name) for name in cameras if not name.startswith(_EMPTY)]
    if len({*cameras}) < len(cameras) or len(cameras) > MAX_CAMERAS:
        raise ValueError(
            f'config.json has {len(cameras)} cameras under input_features; up to {MAX_CAMERAS} of '
            'different names can be taken, and "cameras" may name them.')
    spec = PolicySpec()
    return PolicySpec(
        cameras=tuple(cameras) or OPENPI_CAMERAS,
        state=_quantities(inputs, 'observation.state', 'state', spec.state),
        actions=_quantities(outputs, 'action', 'actions', spec.actions))


def _quantities(
    features: Entries, key: str, name: str, known: tuple[Quantity, ...]
) -> tuple[Quantity, ...]:
    """As many as a feature has numbers; those of LIBERO by name, others by their place."""
    if key not in features:
        return known
    feature: Any = features.inside(key)
    shape = feature.value('shape')
    if not isinstance(shape, list) or len(shape) != 1:
        raise feature.error('shape', 'a list of one number', shape)
    size = Entries({'shape': shape[0]}, 'config.json', key).integer('shape', 1, MAX_NUMBERS)
    if size == len(known):
        return known
    return tuple(Quantity(f'{name}_{index}') for index in range(size))
