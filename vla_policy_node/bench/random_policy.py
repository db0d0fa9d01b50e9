"""Policies of public size with random weights, made on the device without any download.

Speed does not depend on the values of weights. Action errors and the number of tokens that
LightVLA keeps do; with random weights they say nothing about a trained policy.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from vla_policy_node.acceleration.hooks import WeightHooks
from vla_policy_node.families import PolicyNetwork
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.runtime import small
from vla_policy_node.runtime.loading import DTYPES, make_network

_OFT = {
    'vision_backbone_id': 'dinosiglip-vit-so-224px',
    'text_config': {'vocab_size': 32064},
    'llm_max_length': 2048,
}


def _flow(kind: str, views: int) -> Mapping:
    """pi0 or pi0.5 as published, with so many views, on a robot of LIBERO."""
    return {
        'type': kind, 'chunk_size': 50, 'tokenizer_max_length': 200,
        'input_features': {
            **{f'observation.images.view_{index}': {} for index in range(views)},
            'observation.state': {'shape': [8]}},
        'output_features': {'action': {'shape': [7]}}}


# Family -> size -> what the public config.json says of it; '' is OpenVLA-OFT and LightVLA.
SIZES: Mapping[str, Mapping[str, Mapping]] = {
    '': {'7b': _OFT, 'public': _OFT},
    'pi0': {'public': _flow('pi0', 2)},
    'pi05': {'public': _flow('pi05', 3)},
}
_STEMS = ('model', 'action_head--0_checkpoint', 'proprio_projector--0_checkpoint')
_BOS = 2  # of PaliGemma


def document_of(family: str, size: str) -> Mapping:
    """Return config.json of a size; ValueError with one sentence for one that there is not."""
    if family not in SIZES:
        raise ValueError(
            f'family must be one of {", ".join(filter(None, SIZES))}, or left out for '
            f'OpenVLA-OFT, not {family!r}.')
    if size not in SIZES[family]:
        raise ValueError(f'size must be one of {", ".join(SIZES[family])}, not {size!r}.')
    return SIZES[family][size]


def write_files(directory: Path, document: Mapping) -> Path:
    """Write a checkpoint of these sizes in which files without weights stand for them.

    Tokenizer and statistics are those of the small policy: prompts are as long as with Llama's.
    """
    head = {} if 'type' in document else {'head': 'l1'}
    small.create_small_files(directory, {**document, **head, 'trained': False})
    if 'type' in document:
        _as_of_openpi(directory)
        save_file({}, directory / 'model.safetensors')
        return directory
    for stem in _STEMS:
        (directory / f'{stem}.safetensors').touch()
    return directory


def _as_of_openpi(directory: Path) -> None:
    """Put PaliGemma's first id before prompts, and statistics where openpi has them."""
    path = directory / 'tokenizer.json'
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = TemplateProcessing(
        single='<s> $A', special_tokens=[('<s>', _BOS)])
    tokenizer.save(str(path))
    folder = directory / 'assets' / 'random'
    folder.mkdir(parents=True)
    numbers = {
        name: {'mean': [0.0] * size, 'std': [1.0] * size, 'q01': [-1.0] * size,
               'q99': [1.0] * size}
        for name, size in (('state', 8), ('actions', 7))}
    (folder / 'norm_stats.json').write_text(json.dumps({'norm_stats': numbers}))


def load_random(
    directory: Path,
    config: ModelConfig,
    device: str,
    dtype: str,
    fused: bool = False,
    methods: Sequence[WeightHooks] = (),
) -> PolicyNetwork:
    """Make the model in place of `runtime.loading.load_model`; one tensor at a time.

    The same config gives the same weights, before they are rounded to the dtype.
    """
    where = torch.device(device)

    def make(wanted: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in wanted.items():
            yield name, _random(name, tensor.shape, where).to(DTYPES[dtype])

    return make_network(config, make, where, dtype, fused=fused, methods=methods)


def _random(name: str, shape: torch.Size, device: torch.device) -> Tensor:
    """Weights that carry signals through at about unit size, as in `runtime.small`."""
    norm = len(shape) == 1 and name.endswith('.weight')
    if norm or name.endswith('scale_factor'):
        return torch.ones(shape, device=device)
    if name.endswith('.bias'):
        return torch.zeros(shape, device=device)
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    weight = torch.empty(shape, device=device).normal_(generator=generator)
    if name.endswith(('embed_tokens.weight', 'pos_embed', 'cls_token', 'reg_token')):
        return weight
    weight *= weight[0].numel() ** -0.5
    # See `runtime.small`: otherwise all visual tokens share a direction.
    return weight - weight.mean(dim=1, keepdim=True) if weight.ndim == 2 else weight


def stored_bytes(module: nn.Module) -> int:
    """Bytes of the weights as they are kept, scales of quantised ones included."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(_bytes(tensor) for tensor in tensors)


def _bytes(tensor: Tensor) -> int:
    tensor = tensor.data
    if hasattr(tensor, '__tensor_flatten__') and type(tensor) is not Tensor:
        names, _ = tensor.__tensor_flatten__()
        return sum(_bytes(getattr(tensor, name)) for name in names)
    return tensor.nbytes
