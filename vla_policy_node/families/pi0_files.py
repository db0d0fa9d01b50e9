"""Where the weights of pi0 and pi0.5 are in their files, and the sizes that their shapes tell.

| | names begin with | table of words |
|---|---|---|
| openpi in PyTorch, `lerobot/pi0_base` | `paligemma_with_expert.` | `paligemma.lm_head` alone |
| saved by LeRobot 0.4 | `model.paligemma_with_expert.` | either |
| saved by LeRobot from 0.5 on | the same | both, and `embed_tokens` is the one in use |
| LeRobot before 0.4 | the same, other names inside of `paligemma` | either |

The two tables were one and the same tensor until transformers 5. Where both are there, `lm_head`
may be older than the rest of the weights. The expert has a table, too, which nothing reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from math import isqrt
from pathlib import Path

from vla_policy_node.checkpoints.config_file import (
    MAX_IMAGE_PX,
    MAX_LAYERS,
    MAX_VOCABULARY,
    MAX_WIDTH,
)
from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.layout import model_files
from vla_policy_node.checkpoints.weights import INDEX, missing_shard, open_tensors
from vla_policy_node.nn.config import VisionEncoderConfig
from vla_policy_node.nn.siglip import siglip_config
from vla_policy_node.nn.transformer import DecoderConfig

Shape = tuple[int, ...]
SIZES = 'tiny_sizes.json'  # may say what shapes do not: how many heads there are
HEADS = 8  # of both decoders, in every published size
SIGLIP_HEAD = 72  # width of one head of SigLIP So400m
CONTEXT_LENGTH = 8192  # of Gemma

_INNER = 'paligemma_with_expert.'
_LAYER = 'layers.0.self_attn.q_proj.weight'
# Part -> what its names may begin with, and a tensor that tells.
_PARTS: Mapping[str, tuple[tuple[str, ...], str]] = {
    'vision': (
        (f'{_INNER}paligemma.model.vision_tower.vision_model.',
         f'{_INNER}paligemma.model.vision_tower.',
         f'{_INNER}paligemma.vision_tower.vision_model.'),
        'embeddings.patch_embedding.weight'),
    'projector': (
        (f'{_INNER}paligemma.model.multi_modal_projector.linear.',
         f'{_INNER}paligemma.multi_modal_projector.linear.'),
        'weight'),
    'language_model': (
        (f'{_INNER}paligemma.model.language_model.', f'{_INNER}paligemma.language_model.model.'),
        _LAYER),
    'expert': ((f'{_INNER}gemma_expert.model.',), _LAYER),
    'heads': (('',), 'action_in_proj.weight'),
    # Some conversions of pi0.5 kept the name that pi0 has for it.
    'time': (('action_time_mlp_', 'time_mlp_'), 'in.weight'),
}
_WORDS = (
    f'{_INNER}paligemma.model.language_model.embed_tokens.weight',
    f'{_INNER}paligemma.language_model.model.embed_tokens.weight',
    f'{_INNER}paligemma.lm_head.weight',
    f'{_INNER}paligemma.language_model.lm_head.weight')


class PiFiles:
    """Names and shapes of one checkpoint.

    names: part of the network -> what the names of its tensors begin with; 'words' is the whole
    name of the table of words. ValueError with one sentence for files without one of the parts.
    """

    def __init__(self, directory: Path):
        if missing := missing_shard(directory):
            raise ValueError(
                f'{directory} lacks {missing}, which {INDEX} names; the download is incomplete.')
        self._directory = directory
        self._shapes = _shapes(directory)
        self.names = {part: self._find(part, *where) for part, where in _PARTS.items()}
        self.names['words'] = self._find_words()

    @property
    def adaptive(self) -> bool:
        """Whether the time of the flow modulates the expert's norms, as in pi0.5."""
        return f"{self.names['expert']}norm.dense.weight" in self._shapes

    @property
    def untied(self) -> bool:
        """Whether both tables of words are there, as LeRobot saves them from 0.5 on."""
        return sum(root + name in self._shapes for name in _WORDS for root in ('', 'model.')) > 1

    def shape(self, part: str, name: str, dimensions: int) -> Shape:
        """Shape of a tensor of a part; ValueError if it is not there or cannot be."""
        full = self.names[part] + name
        shape = self._shapes.get(full)
        if shape is None:
            raise ValueError(f'{self._directory} has no tensor {full}; download it again.')
        if len(shape) != dimensions or not all(1 <= size <= MAX_VOCABULARY for size in shape):
            raise ValueError(
                f'{full} in {self._directory} has shape {list(shape)}, which no policy has there; '
                'download it again.')
        return shape

    def layers(self, part: str, holder: str = 'layers.') -> int:
        """How many layers a part has."""
        root = self.names[part] + holder
        found = {name.removeprefix(root).partition('.')[0]
                 for name in self._shapes if name.startswith(root)}
        if not 1 <= len(found) <= MAX_LAYERS:
            raise ValueError(
                f'{self._directory} has {len(found)} layers {root}*; there are at most '
                f'{MAX_LAYERS} in a model.')
        return len(found)

    def decoder(self, part: str, sizes: Entries) -> DecoderConfig:
        """Sizes of one of the two decoders.

        sizes: may say how many heads there are (`num_heads`, `num_kv_heads`), which shapes do not.
        """
        query, width = self.shape(part, _LAYER, 2)
        keys, _ = self.shape(part, _LAYER.replace('q_proj', 'k_proj'), 2)
        mlp, _ = self.shape(part, 'layers.0.mlp.gate_proj.weight', 2)
        heads = sizes.integer('num_heads', 1, MAX_WIDTH, HEADS)
        head_width = query // heads
        if not head_width or query % heads or keys % head_width or head_width % 2 or (
                heads % (keys // head_width)):
            raise ValueError(
                f'Queries of {query} and keys of {keys} numbers do not make {heads} heads; say '
                f'how many there are in {SIZES}.')
        words = _vocabulary(self._shapes[self.names['words']]) if part == 'language_model' else 0
        condition = self.shape(part, 'norm.dense.weight', 2)[1] if (
            part == 'expert' and self.adaptive) else 0
        return gemma(DecoderConfig(
            width=width, layers=self.layers(part), heads=heads, head_width=head_width,
            key_heads=keys // head_width, mlp_width=mlp, vocabulary=words,
            condition_width=condition))

    def vision(self, sizes: Entries) -> VisionEncoderConfig:
        """Sizes of the vision encoder; sizes: may say how many heads it has."""
        width, _, patch_px, _ = self.shape('vision', 'embeddings.patch_embedding.weight', 4)
        patches, _ = self.shape('vision', 'embeddings.position_embedding.weight', 2)
        mlp, _ = self.shape('vision', 'encoder.layers.0.mlp.fc1.weight', 2)
        side = isqrt(patches)
        heads = sizes.integer('num_heads', 1, width, width // SIGLIP_HEAD or width)
        if 'num_heads' not in sizes and width % SIGLIP_HEAD:
            raise ValueError(
                f'{self._directory} has a vision encoder of width {width}, and nothing says how '
                f'many heads that makes; write {{"vision": {{"num_heads": 2}}}} or how many they '
                f'are into a {SIZES} there.')
        if side * side != patches or width % heads:
            raise ValueError(
                f'{self._directory} has a vision encoder of {patches} patches and width {width} '
                f'with {heads} heads, which cannot be; take the files of one checkpoint.')
        if side * patch_px > MAX_IMAGE_PX:
            raise ValueError(
                f'{self._directory} has a vision encoder for pictures of {side * patch_px:,} px, '
                f'and none takes more than {MAX_IMAGE_PX}; download the weights again.')
        return siglip_config(
            width, self.layers('vision', 'encoder.layers.'), heads, mlp, patch_px, side * patch_px)

    def _find(self, part: str, prefixes: tuple[str, ...], probe: str) -> str:
        for prefix in prefixes:
            for root in ('', 'model.'):
                if root + prefix + probe in self._shapes:
                    return root + prefix
        raise ValueError(
            f'{self._directory} has no weights {prefixes[0]}{probe}, so they are not of pi0 or '
            'pi0.5, or in a layout that is not known; docs/your_checkpoint.md says which are.')

    def _find_words(self) -> str:
        for name in _WORDS:
            for root in ('', 'model.'):
                if root + name in self._shapes:
                    return root + name
        raise ValueError(
            f'{self._directory} has no table of words: there is neither '
            'paligemma.model.language_model.embed_tokens.weight nor paligemma.lm_head.weight, one '
            'of which holds it; without it the policy is blind to language, so save the model '
            'again with one of them.')


def holds_nothing(directory: Path) -> bool:
    """Whether there is no tensor in the files of the model."""
    return not _shapes(directory)


def gemma(sizes: DecoderConfig) -> DecoderConfig:
    """Give a decoder of these sizes the style of Gemma."""
    return replace(
        sizes, activation='gelu_tanh', norm_offset=True, context_length=CONTEXT_LENGTH,
        embedding_scale=sizes.width**0.5 if sizes.vocabulary else 1.0)


def _vocabulary(shape: Shape) -> int:
    if len(shape) != 2 or not 1 <= shape[0] <= MAX_VOCABULARY:
        raise ValueError(
            f'The table of words has shape {list(shape)}, and no vocabulary has more than '
            f'{MAX_VOCABULARY:,} words; download the weights again.')
    return shape[0]


def _shapes(directory: Path) -> dict[str, Shape]:
    """Shape of every tensor of the model by its name without wrappers."""
    found: dict[str, Shape] = {}
    with ExitStack() as stack:
        for path in model_files(directory):
            names, get = stack.enter_context(open_tensors(path))
            found |= {name: _shape(get, name) for name in names}
    return found


def _shape(get: Callable, name: str) -> Shape:
    return tuple(get(name).shape)
