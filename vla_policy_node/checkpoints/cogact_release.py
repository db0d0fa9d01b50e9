"""The layout of the public `CogACT/*` repositories, read as if it were OpenVLA's.

`config.json` (the settings of training), `dataset_statistics.json`, and one
`checkpoints/<name>.pt` with tables of tensors under `model`: `vision_backbone`, `projector`,
`llm_backbone` and `action_model`, in the names of the Prismatic code base. There is neither
tokenizer (it is Llama-2's) nor normalisation, and the sizes of the head are those of its tensors.
Entries of our own config.json may stand beside theirs, for other sizes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

from torch import Tensor

from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.reading import shown

BASE_MODEL = 'prism-dinosiglip-224px+7b'
# Of each block count and width of the published heads, DiT-S, -B and -L, the number of heads.
_HEADS = {(6, 384): 4, (12, 768): 12, (24, 1024): 16}
# Prismatic takes the language model's norm from meta-llama/Llama-2-7b-hf; OpenVLA's config.json
# leaves it to the default of the transformers library.
_LLAMA_2 = {'rms_norm_eps': 1e-5}
# As timm normalises for DINOv2 and SigLIP. Pictures of another size are resized by Pillow.
NORMALISATION = {
    'tvf_normalize_params': [
        {'mean': [0.485, 0.456, 0.406], 'std': [0.229, 0.224, 0.225]},
        {'mean': [0.5, 0.5, 0.5], 'std': [0.5, 0.5, 0.5]},
    ],
    'resize': 'bicubic',
}
_SECTIONS = ('vision_backbone', 'projector', 'llm_backbone', 'action_model')
# Of our own config.json, what may stand in theirs.
_OWN_ENTRIES = (
    'cameras', 'camera_transforms', 'state', 'actions', 'proprio', 'normalisation', 'center_crop',
    'trained', 'method_settings', 'vision_tiny', 'tiny_token_ids', 'llm_max_length')
# Their names, section first, and OpenVLA's.
_NAMES = (
    (r'^vision_backbone\.dino_featurizer\.(.*)\.gamma$',
     r'vision_backbone.featurizer.\1.scale_factor'),
    (r'^vision_backbone\.dino_featurizer\.', 'vision_backbone.featurizer.'),
    (r'^vision_backbone\.siglip_featurizer\.', 'vision_backbone.fused_featurizer.'),
    (r'^projector\.projector\.0\.', 'projector.fc1.'),
    (r'^projector\.projector\.2\.', 'projector.fc2.'),
    (r'^projector\.projector\.4\.', 'projector.fc3.'),
    (r'^llm_backbone\.llm\.', 'language_model.'),
    (r'^action_model\.', ''),
)


def find(directory: Path) -> Path | None:
    """Return the `.pt` of a directory in this layout, None for any other.

    ValueError for a directory with several.
    """
    files = sorted((directory / 'checkpoints').glob('*.pt'))
    if not files or any(directory.glob('model*.safetensors')):
        return None
    if len(files) > 1:
        raise ValueError(
            f'{directory}/checkpoints holds {len(files)} files; leave the one to be used.')
    return files[0]


def is_release(state: object) -> TypeGuard[Mapping]:
    """Whether this is what a `.pt` of CogACT holds."""
    model = state.get('model') if isinstance(state, Mapping) else None
    return isinstance(model, Mapping) and 'action_model' in model and all(
        isinstance(model.get(section, {}), Mapping) for section in _SECTIONS)


def is_of_prismatic(state: object) -> bool:
    """Whether this is what the Prismatic code base saves of OpenVLA in training."""
    model = state.get('model') if isinstance(state, Mapping) else None
    return isinstance(model, Mapping) and 'llm_backbone' in model


def rename_release(state: Mapping) -> dict[str, Tensor]:
    """Tables of tensors by section -> one table in the names of OpenVLA; `net.*` is the head.

    Averaged weights of the head (`ema_diffusion`), which the authors do not use, are left out.
    """
    renamed = {}
    for section in _SECTIONS:
        for name, tensor in state['model'].get(section, {}).items():
            renamed[_rename(f'{section}.{name}')] = tensor
    return renamed


def describe(release: Path, document: Mapping) -> dict:
    """Return what `families.prismatic_config.read_sizes` wants to know, from their files.

    document: their parsed config.json. ValueError with one sentence for what cannot run.
    """
    from vla_policy_node.checkpoints.weights import open_tensors  # which imports this module

    directory = release.parent.parent
    entries = Entries(document, f'{directory}/config.json')
    base = entries.inside('vla', {}).value('base_vlm', None)
    if 'vision_tiny' not in entries and base != BASE_MODEL:
        raise ValueError(
            f'{directory}/config.json names the base model {shown(base)}; of CogACT only policies '
            f'on {BASE_MODEL!r} can be loaded.')
    with open_tensors(release) as (names, get):
        if 'net.positional_embedding' not in names:
            raise ValueError(f'{release} holds no action model of CogACT.')
        embedding = get('net.positional_embedding')
        if embedding.ndim != 2 or len(embedding) < 2:
            raise ValueError(f'{release} holds no action model of CogACT.')
        rows, width = embedding.shape
    if not (directory / 'tokenizer.json').is_file():
        raise ValueError(
            f'{directory} has no tokenizer.json, which CogACT leaves to Llama-2; copy the one of '
            'openvla/openvla-7b into it.')
    blocks = sum(bool(re.fullmatch(r'net\.blocks\.\d+\.mlp\.fc1\.bias', name)) for name in names)
    sizes = {'blocks': blocks, 'width': width, **entries.inside('dit', {}).items()}
    if 'heads' not in sizes:
        if (blocks, width) not in _HEADS:
            raise ValueError(
                f'{release} has a head of {blocks} blocks of width {width}, which is none of '
                "DiT-S, -B and -L; give its number of heads in config.json under 'dit'.")
        sizes['heads'] = _HEADS[blocks, width]
    if entries.value('chunk_length', rows - 1) != rows - 1:
        raise entries.error(
            'chunk_length', f'{rows - 1}, as in {release.name}', entries.value('chunk_length'))
    own = {key: document[key] for key in _OWN_ENTRIES if key in entries}
    return {
        'vision_backbone_id': 'dinosiglip-vit-so-224px',
        'head': 'cogact',
        'proprio': 'state' in entries,
        'cameras': 1,
        'center_crop': False,
        **own,
        'text_config': {**_LLAMA_2, **entries.inside('text_config', {}).items()},
        'chunk_length': rows - 1,
        'dit': sizes,
    }


def _rename(name: str) -> str:
    for pattern, replacement in _NAMES:
        name, found = re.subn(pattern, replacement, name)
        if found:
            return name
    return name
