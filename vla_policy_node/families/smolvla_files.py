"""What the files of a SmolVLA say of its sizes: shapes of its weights, and its backbone's config.

The weights of a fine-tune may hold the whole backbone; layers that the policy does not run are
never read. The backbone's files (config.json, tokenizer.json) are not part of public checkpoints:
they are looked for in the folder that `vlm_model_name` names, if it is relative, inside of the
checkpoint or beside it, and in `vlm_backbone` there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from vla_policy_node.checkpoints import adapter
from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.layout import model_files
from vla_policy_node.checkpoints.reading import plain, read_json, shown
from vla_policy_node.checkpoints.tokenizer_file import read_tokenizer
from vla_policy_node.checkpoints.weights import open_tensors
from vla_policy_node.families.smolvla_config import Frame, public_backbone, unknown_backbone

FOLDER = 'vlm_backbone'  # of the backbone's files, inside of a checkpoint
HEAD_WIDTH = 64  # of all public backbones, in vision and language
VLM = 'model.vlm_with_expert.vlm.model.'
EXPERT = 'model.vlm_with_expert.lm_expert.'
_VISION, _TEXT = f'{VLM}vision_model.', f'{VLM}text_model.'
_FRAME = '<fake_token_around_image>', '<global-img>'
_LAYER = re.compile(r'layers\.(\d+)\.')
# What shapes must tell: the names of tensors below `model.`, by what they are called here.
_NEEDED = {
    'patches': f'{_VISION}embeddings.patch_embedding.weight',
    'positions': f'{_VISION}embeddings.position_embedding.weight',
    'fc1': f'{_VISION}encoder.layers.0.mlp.fc1.weight',
    'connector': f'{VLM}connector.modality_projection.proj.weight',
    'words': f'{_TEXT}embed_tokens.weight',
    'query': f'{_TEXT}layers.0.self_attn.q_proj.weight',
    'key': f'{_TEXT}layers.0.self_attn.k_proj.weight',
    'gate': f'{_TEXT}layers.0.mlp.gate_proj.weight',
    'expert': f'{EXPERT}layers.0.mlp.gate_proj.weight',
}


def stored_sizes(directory: Path, document: Mapping) -> dict[str, object]:
    """Sizes in the words of `smolvla_config.SIZES`; ValueError if the weights are of no SmolVLA.

    document: the parsed config.json.
    """
    shapes, counts = _shapes(directory)
    for name in _NEEDED.values():
        if name not in shapes:
            raise ValueError(
                f'{directory} says that it is a SmolVLA and has no tensor {name}; the download '
                'may be incomplete.')
    of = {short: shapes[name] for short, name in _NEEDED.items()}
    lengths = {'patches': 4, 'positions': 2}
    for short, shape in of.items():
        if len(shape) != lengths.get(short, 2) or 0 in shape:
            raise ValueError(
                f'{directory} has {_NEEDED[short]} of shape {list(shape)}, as no SmolVLA has; '
                'download it again.')
    width, side = of['patches'][0], round(of['positions'][0] ** 0.5)
    heads = _Heads(directory, document, width)
    shuffle = round((of['connector'][1] / width) ** 0.5)
    layers = _layers(directory, document, counts)
    return {
        'vision': {
            'width': width, 'blocks': counts.get(_VISION, 0), 'heads': heads.vision,
            'mlp_width': of['fc1'][0], 'patch_px': of['patches'][2],
            'image_px': side * of['patches'][2]},
        'pixel_shuffle': shuffle,
        'text': {
            'width': of['words'][1], 'layers': layers,
            'heads': max(1, of['query'][0] // heads.width),
            'key_heads': max(1, of['key'][0] // heads.width), 'head_width': heads.width,
            'mlp_width': of['gate'][0], 'vocabulary': of['words'][0]},
        'expert': {'width': of['expert'][1], 'mlp_width': of['expert'][0]},
    }


def backbone_folders(directory: Path, document: Mapping) -> list[Path]:
    """Where files of the backbone may be."""
    named, names = document.get('vlm_model_name'), [FOLDER]
    if isinstance(named, str) and named:
        inside = PurePosixPath(named)
        if not inside.is_absolute() and '..' not in inside.parts:
            names.append(named)
    return [parent / name for folder in adapter.folders(directory)
            for parent in (folder, folder.parent) for name in names]


def frame_ids(directory: Path, document: Mapping) -> Frame:
    """Ids of the words around each picture, where config.json asks for them."""
    if not Entries(document, 'config.json').flag('add_image_special_tokens', False):
        return (), ()
    path = _find([*adapter.folders(directory), *backbone_folders(directory, document)],
                 'tokenizer.json')
    if path is None:
        raise ValueError(
            f'{directory} has no tokenizer.json, in which the words around pictures are looked '
            f'up; copy that of {shown(document.get("vlm_model_name"))} into it.')
    tokenizer = read_tokenizer(path)
    ids: list[int] = []
    for word in _FRAME:
        if (number := tokenizer.token_to_id(word)) is None:
            raise ValueError(
                f'{path} has no {word}, and config.json sets add_image_special_tokens; take the '
                'tokenizer.json of the backbone.')
        ids.append(number)
    return tuple(ids), tuple(ids[:1])


def _find(folders: Iterable[Path], name: str) -> Path | None:
    return next((folder / name for folder in folders if os.path.lexists(folder / name)), None)


class _Heads:
    """How wide heads are, which shapes do not tell: by the backbone's config.json, else 64.

    vision: how many there are in vision, whose width is given.
    """

    def __init__(self, directory: Path, document: Mapping, width: int):
        self.width, self.vision = HEAD_WIDTH, max(1, width // HEAD_WIDTH)
        if path := _find(backbone_folders(directory, document), 'config.json'):
            entries = Entries(read_json(path), str(path))
            text = entries.inside('text_config')
            count = text.integer('num_attention_heads', 1, 1 << 16)
            self.width = text.integer(
                'head_dim', 1, 1 << 16,
                max(1, text.integer('hidden_size', 1, 1 << 17, HEAD_WIDTH * count) // count))
            self.vision = entries.inside('vision_config').integer(
                'num_attention_heads', 1, 1 << 16, self.vision)
        elif public_backbone(named := document.get('vlm_model_name')) is None:
            raise unknown_backbone(named)


def _shapes(directory: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Shapes of the tensors that are needed, and how many layers each part has."""
    shapes: dict[str, tuple[int, ...]] = {}
    numbers: dict[str, set[int]] = {part: set() for part in (_VISION, _TEXT, EXPERT)}
    for path in model_files(directory):
        with open_tensors(path) as (names, get):
            for part, found in numbers.items():
                found |= _numbers(names, part)
            shapes |= {name: tuple(get(name).shape) for name in names & {*_NEEDED.values()}}
    return shapes, {part: len(found) for part, found in numbers.items()}


def _numbers(names: Iterable[str], part: str) -> set[int]:
    matches = (_LAYER.search(name) for name in names if name.startswith(part))
    return {int(match[1]) for match in matches if match}


def _layers(directory: Path, document: Mapping, counts: Mapping[str, int]) -> int:
    """How many layers run; refuses an expert with another number of them."""
    asked = Entries(document, 'config.json').integer('num_vlm_layers', -1, 512, 16)
    layers = asked if asked > 0 else counts[_TEXT]
    if counts[EXPERT] != layers:
        raise ValueError(
            f'{plain(str(directory))} has an expert of {counts[EXPERT]} layers, and {layers} of '
            'the language model run (num_vlm_layers): each layer of a SmolVLA here has one of '
            'the expert; take the config.json that belongs to the weights.')
    return layers
