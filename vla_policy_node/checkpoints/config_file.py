"""Reads from `config.json`, which may be anybody's, what policies of all families have."""

from __future__ import annotations

from typing import Any

from vla_policy_node.checkpoints.entries import REQUIRED, Entries, is_number
from vla_policy_node.nn.config import FamilyTraits, VisionEncoderConfig
from vla_policy_node.policy.interface import PolicySpec, Quantity

# More than any published policy has of them, and little enough to count before anything is built.
MAX_LAYERS = 512
MAX_WIDTH = 1 << 17
MAX_VOCABULARY = 1_000_000
MAX_IMAGE_PX = 2048  # side of the square that a vision encoder takes
EPS = 1e-15, 0.1  # of norms, from and to
MAX_CAMERAS = 4
MAX_NUMBERS = 64  # of one state or one action
# How training may have turned upright pictures; `encoding.preprocess` does it.
TRANSFORMS = ('none', 'rotate_180', 'mirror_horizontal')
# Which numbers of the statistics become -1 and 1.
RANGES = {'q99': ('q01', 'q99'), 'min_max': ('min', 'max')}


def read_common(
    entries: Entries,
    family: FamilyTraits,
    spec: PolicySpec | None = None,
    chunk_length: int = 8,
    ranges: str = 'q99',
) -> dict[str, Any]:
    """Return what every `ModelConfig` has besides its decoder, as keyword arguments.

    `cameras`, `state` and `actions` are lists of names, or say how many; what is not named is
    called as in `spec`. `"proprio": false` is an empty state.
    spec, chunk_length, ranges: where the file is silent.
    """
    spec = spec or PolicySpec()
    cameras = _cameras(entries, spec.cameras)
    return {
        'family': family,
        'spec': PolicySpec(
            cameras=cameras,
            state=_quantities(entries, 'state', spec.state) if entries.flag('proprio', True)
            else (),
            actions=_quantities(entries, 'actions', spec.actions)),
        'ranges': RANGES[entries.word('normalisation', tuple(RANGES), ranges)],
        'chunk_length': entries.integer('chunk_length', 1, 1000, chunk_length),
        'trained': entries.flag('trained', True),
        'method_settings': _method_settings(entries.inside('method_settings', {})),
        'camera_transforms': _camera_transforms(
            entries.inside('camera_transforms', {}), cameras),
    }


def read_encoder(sizes: Entries) -> VisionEncoderConfig:
    """Read the sizes of a vision encoder, in the words of timm."""
    width, heads = width_and_heads(sizes, 'embed_dim', 'num_heads')
    image_px = sizes.integer('img_size', 1, MAX_IMAGE_PX)
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


def width_and_heads(
    sizes: Entries, width_key: str, heads_key: str, width: object = REQUIRED,
    heads: object = REQUIRED,
) -> tuple[int, int]:
    """Read a width, and into how many heads it is divided."""
    width = sizes.integer(width_key, 4, MAX_WIDTH, width)
    heads = sizes.integer(heads_key, 1, width, heads)
    if width % heads:
        raise sizes.error(heads_key, f'a divisor of {sizes.name_of(width_key)}, {width}', heads)
    return width, heads


def _cameras(entries: Entries, known: tuple[str, ...]) -> tuple[str, ...]:
    value = entries.value('cameras', len(known))
    if isinstance(value, list):
        return _names(entries, 'cameras', MAX_CAMERAS)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= len(known):
        raise entries.error(
            'cameras', f'a list of names, or a number from 1 to {len(known)}: {", ".join(known)}',
            value)
    return known[:value]


def _quantities(
    entries: Entries, key: str, known: tuple[Quantity, ...]
) -> tuple[Quantity, ...]:
    """Numbers by name; those that only a count tells of are called by their place."""
    value = entries.value(key, len(known))
    if isinstance(value, list):
        units = {quantity.name: quantity for quantity in known}
        return tuple(units.get(name, Quantity(name)) for name in _names(entries, key, MAX_NUMBERS))
    count = entries.integer(key, 1, MAX_NUMBERS, len(known))
    return known if count == len(known) else tuple(
        Quantity(f'{key}_{index}') for index in range(count))


def _names(entries: Entries, key: str, most: int) -> tuple[str, ...]:
    values = entries.value(key)
    if not isinstance(values, list) or not 1 <= len(values) <= most or not all(
        isinstance(value, str) and value.isidentifier() for value in values
    ) or len({*values}) < len(values):
        raise entries.error(key, f'a list of 1 to {most} different names', values)
    return tuple(values)


def _camera_transforms(chosen: Entries, cameras: tuple[str, ...]) -> dict[str, str]:
    chosen.only(*cameras)
    return {camera: chosen.word(camera, TRANSFORMS) for camera in chosen.names()}


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
