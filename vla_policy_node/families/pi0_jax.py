"""Converts openpi's JAX checkpoints of pi0 and pi0.5, once, into files that load here.

    python -m vla_policy_node.families.pi0_jax CHECKPOINT OUT --horizon 50

CHECKPOINT is a step of openpi: `params/`, in orbax's format, and `assets/`. Reading it needs
`pip install orbax-checkpoint`. What is written has the layout of openpi's PyTorch files, in the
precision of the parameters. How many actions a chunk has, the parameters do not tell.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

Arrays = Mapping[str, np.ndarray]
Take = Callable[[str], Tensor]  # the parameter of a path
ROOT = 'PaliGemma/'
_INNER = 'paligemma_with_expert.'
_VISION = f'{_INNER}paligemma.model.vision_tower.vision_model.'
_PROJECTOR = f'{_INNER}paligemma.model.multi_modal_projector.linear.'
_DECODERS = {
    '': f'{_INNER}paligemma.model.language_model.', '_1': f'{_INNER}gemma_expert.model.'}
_NORMS = {
    'pre_attention_norm': 'input_layernorm', 'pre_ffw_norm': 'post_attention_layernorm'}
_ATTENTION = {'query': 'q_proj', 'key': 'k_proj', 'value': 'v_proj'}


def flat(tree: Mapping, path: str = '') -> dict[str, np.ndarray]:
    """Nested parameters -> arrays by path; a last step `value` is left away."""
    found: dict[str, np.ndarray] = {}
    for name, part in tree.items():
        where = f'{path}/{name}'.strip('/')
        if isinstance(part, Mapping):  # attention has a part of this name, too
            found |= flat(part, where)
        else:
            found[path if name == 'value' else where] = np.asarray(part)
    return found


def convert(arrays: Arrays) -> dict[str, Tensor]:
    """Parameters by path -> weights by their names in PyTorch.

    ValueError with one sentence for parameters that are missing, or left over.
    """
    strange = next((name for name in arrays if 'lora_' in name), None)
    if strange:
        raise ValueError(
            f'The checkpoint has LoRA weights beside its own, {strange}; merge them with openpi '
            'before it is converted.')
    used: set[str] = set()

    def take(path: str) -> Tensor:
        if path not in arrays:
            raise ValueError(f'The checkpoint lacks {path}; it is none of pi0 or pi0.5.')
        used.add(path)
        array = arrays[path]
        if array.dtype.name == 'bfloat16':  # of ml_dtypes, which torch does not know
            return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(np.array(array))

    tensors = dict(_vision(take))
    for suffix, prefix in _DECODERS.items():
        tensors |= {prefix + name: x for name, x in _decoder(take, suffix, arrays)}
    words = f'{_DECODERS[""]}embed_tokens.weight'
    tensors[words] = take(f'{ROOT}llm/embedder/input_embedding')
    for path in arrays:
        if not path.startswith(ROOT) and path.endswith('/kernel'):
            name = path.removesuffix('/kernel')
            tensors |= dict(_linear(take, name, f'{name}.'))
    left = sorted(arrays.keys() - used)
    if left:
        raise ValueError(f'The checkpoint has {left[0]}, which neither pi0 nor pi0.5 has.')
    return {name: x.contiguous() for name, x in tensors.items()}


def _linear(take: Take, path: str, name: str) -> Iterator[tuple[str, Tensor]]:
    yield f'{name}weight', take(f'{path}/kernel').T
    yield f'{name}bias', take(f'{path}/bias')


def _vision(take: Take) -> Iterator[tuple[str, Tensor]]:
    root, block = f'{ROOT}img/', f'{ROOT}img/Transformer/encoderblock/'
    yield (f'{_VISION}embeddings.patch_embedding.weight',
           take(f'{root}embedding/kernel').permute(3, 2, 0, 1))
    yield f'{_VISION}embeddings.patch_embedding.bias', take(f'{root}embedding/bias')
    yield f'{_VISION}embeddings.position_embedding.weight', take(f'{root}pos_embedding')[0]
    norm = f'{root}Transformer/encoder_norm/'
    yield f'{_VISION}post_layernorm.weight', take(f'{norm}scale')
    yield f'{_VISION}post_layernorm.bias', take(f'{norm}bias')
    yield from _linear(take, f'{root}head', _PROJECTOR)
    attention = f'{block}MultiHeadDotProductAttention_0/'
    stacked = {
        **{f'layer_norm{index + 1}.{ours}': take(f'{block}LayerNorm_{index}/{theirs}')
           for index in (0, 1) for ours, theirs in (('weight', 'scale'), ('bias', 'bias'))},
        **{f'mlp.fc{index + 1}.weight': take(f'{block}MlpBlock_0/Dense_{index}/kernel').mT
           for index in (0, 1)},
        **{f'mlp.fc{index + 1}.bias': take(f'{block}MlpBlock_0/Dense_{index}/bias')
           for index in (0, 1)},
        **{f'self_attn.{ours}.weight': take(f'{attention}{theirs}/kernel').flatten(2).mT
           for theirs, ours in _ATTENTION.items()},
        **{f'self_attn.{ours}.bias': take(f'{attention}{theirs}/bias').flatten(1)
           for theirs, ours in _ATTENTION.items()},
        'self_attn.out_proj.weight': take(f'{attention}out/kernel').flatten(1, 2).mT,
        'self_attn.out_proj.bias': take(f'{attention}out/bias'),
    }
    yield from _apart(stacked, f'{_VISION}encoder.')


def _decoder(take: Take, suffix: str, arrays: Arrays) -> Iterator[tuple[str, Tensor]]:
    """Weights of one decoder; suffix: of its parameters, which lie beside those of the other."""
    root = f'{ROOT}llm/'
    layers = f'{root}layers/'
    pairs = take(f'{layers}attn/kv_einsum{suffix}/w')  # [layers, 2, key heads, width, head width]
    keys, values = pairs.transpose(3, 4).flatten(2, 3).unbind(1)
    gate, up = take(f'{layers}mlp{suffix}/gating_einsum').mT.unbind(1)
    stacked = {
        'self_attn.q_proj.weight':
            take(f'{layers}attn/q_einsum{suffix}/w').transpose(2, 3).flatten(1, 2),
        'self_attn.k_proj.weight': keys, 'self_attn.v_proj.weight': values,
        'self_attn.o_proj.weight':
            take(f'{layers}attn/attn_vec_einsum{suffix}/w').flatten(1, 2).mT,
        'mlp.gate_proj.weight': gate, 'mlp.up_proj.weight': up,
        'mlp.down_proj.weight': take(f'{layers}mlp{suffix}/linear').mT,
    }
    for theirs, ours in _NORMS.items():
        stacked |= {f'{ours}.{name}': x for name, x in _norm(
            take, f'{layers}{theirs}{suffix}', arrays)}
    yield from _apart(stacked, '')
    for name, x in _norm(take, f'{root}final_norm{suffix}', arrays):
        yield f'norm.{name}', x


def _norm(take: Take, path: str, arrays: Arrays) -> Iterator[tuple[str, Tensor]]:
    """A norm with a weight, or one that a condition modulates."""
    if f'{path}/Dense_0/kernel' in arrays:
        yield 'dense.weight', take(f'{path}/Dense_0/kernel').mT
        yield 'dense.bias', take(f'{path}/Dense_0/bias')
    else:
        yield 'weight', take(f'{path}/scale')


def _apart(stacked: Mapping[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Weights of all layers, [layers, ...] -> those of each."""
    for name, x in stacked.items():
        for index, own in enumerate(x):
            yield f'{prefix}layers.{index}.{name}', own


def read_orbax(folder: Path) -> dict[str, np.ndarray]:
    """Parameters that orbax saved, on the CPU; ValueError with one sentence if it cannot."""
    try:
        import orbax.checkpoint as orbax
        from jax import tree
    except ImportError as error:
        raise ValueError(
            f'Reading {folder} needs orbax: pip install orbax-checkpoint.') from error
    try:
        with orbax.PyTreeCheckpointer() as reader:
            described = reader.metadata(folder.absolute())
            described = getattr(described, 'item_metadata', described)
            described = getattr(described, 'tree', described)
            found = reader.restore(folder.absolute(), restore_args=tree.map(
                lambda _: orbax.RestoreArgs(restore_type=np.ndarray), dict(described)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = next(iter(str(error).splitlines()), '')
        raise ValueError(f'{folder} holds no parameters that orbax can read: {reason}') from error
    return flat(found.get('params', found))


def write(arrays: Arrays, checkpoint: Path, out: Path, horizon: int) -> None:
    """Write weights, config.json and statistics into a directory that is not there yet."""
    tensors = convert(arrays)
    out.mkdir(parents=True)
    save_file(tensors, out / 'model.safetensors')
    (out / 'config.json').write_text(json.dumps({
        'action_dim': tensors['action_in_proj.weight'].shape[1], 'action_horizon': horizon,
        'paligemma_variant': 'gemma_2b', 'action_expert_variant': 'gemma_300m',
        'precision': str(tensors['action_in_proj.weight'].dtype).removeprefix('torch.'),
    }, indent=2) + '\n')
    if (checkpoint / 'assets').is_dir():
        shutil.copytree(checkpoint / 'assets', out / 'assets')


def main() -> int:
    """Run from the command line; 2 with one sentence for what cannot be converted."""
    options = argparse.ArgumentParser(
        prog='python -m vla_policy_node.families.pi0_jax',
        description='Convert a JAX checkpoint of openpi into files that load here.')
    options.add_argument('checkpoint', type=Path)
    options.add_argument('out', type=Path)
    options.add_argument('--horizon', type=int, required=True, help='actions of a chunk')
    given = options.parse_args()
    try:
        if given.out.exists():
            raise ValueError(f'{given.out} is there already; name another directory.')
        if not 1 <= given.horizon <= 1000:
            raise ValueError(f'--horizon must be from 1 to 1000, not {given.horizon}.')
        params = given.checkpoint / 'params'
        if not params.is_dir():
            raise ValueError(f'{given.checkpoint} has no params/; name a step of openpi.')
        write(read_orbax(params), given.checkpoint, given.out, given.horizon)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
