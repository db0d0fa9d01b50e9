"""Policies of public size with random weights, made on the device without any download.

Speed does not depend on the values of weights. Action errors and the number of tokens that
LightVLA keeps do; with random weights they say nothing about a trained policy.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vla_policy_node.compression.quantise import BITS, make_quantiser
from vla_policy_node.families import create_network
from vla_policy_node.families.prismatic import PrismaticVla
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.norms import RmsNorm
from vla_policy_node.runtime import checkpoint, small

# Sizes as in the public config.json of OpenVLA-OFT and LightVLA.
SIZES: Mapping[str, Mapping] = {
    '7b': {
        'vision_backbone_id': 'dinosiglip-vit-so-224px',
        'text_config': {'vocab_size': 32064},
        'llm_max_length': 2048,
    },
}
_STEMS = ('model', 'action_head--0_checkpoint', 'proprio_projector--0_checkpoint')


def write_files(directory: Path, document: Mapping) -> Path:
    """Write a checkpoint of these sizes in which empty files stand for the weights.

    Tokenizer and statistics are those of the small policy: prompts are as long as with Llama's.
    """
    small.create_small_files(directory, {**document, 'head': 'l1', 'trained': False})
    for stem in _STEMS:
        (directory / f'{stem}.safetensors').touch()
    return directory


def load_random(
    directory: Path, config: ModelConfig, device: str, dtype: str, fused: bool = False
) -> PrismaticVla:
    """Make the model in place of `runtime.checkpoint.load_model`; one tensor at a time.

    The same config gives the same weights, before they are rounded to the dtype.
    """
    where = torch.device(device)
    with torch.device('meta'):
        model = create_network(config)
    quantise = make_quantiser(model, dtype, where) if dtype in BITS else None
    norms = {
        f'{name}.weight' for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm | RmsNorm)
    }
    state = {}
    for name, wanted in model.state_dict().items():
        tensor = _random(name, wanted.shape, name in norms, where)
        tensor = tensor.to(checkpoint.DTYPES[dtype])
        state[name] = quantise(name, tensor) if quantise else tensor
    model.load_state_dict(state, assign=True)
    return checkpoint.finish_model(model, dtype, fused)


def _random(name: str, shape: torch.Size, norm: bool, device: torch.device) -> Tensor:
    """Weights that carry signals through at about unit size, as in `runtime.small`."""
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
