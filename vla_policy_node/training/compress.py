"""A smaller checkpoint from a larger one, without training: `vla compress`.

What is removed is decided by `compression.layer_removal`; here are the files around it. The
result is a checkpoint like any other, and its config.json also says where it comes from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vla_policy_node.checkpoints.adapter import place
from vla_policy_node.checkpoints.fingerprint import fingerprint
from vla_policy_node.checkpoints.hub import find_checkpoint
from vla_policy_node.checkpoints.layout import (
    read_document,
    read_normalisation,
    read_statistics_document,
    speaks_vicuna,
)
from vla_policy_node.checkpoints.published import published_action_rows
from vla_policy_node.checkpoints.statistics import Statistics, read_statistics
from vla_policy_node.compression.layer_removal import (
    layer_importance,
    least_important,
    narrow_mlps,
    remove_layers,
)
from vla_policy_node.families import count_flops, read_model_config
from vla_policy_node.families.prismatic import PrismaticVla
from vla_policy_node.families.prismatic_config import PrismaticConfig
from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.sequence import TokenSequence
from vla_policy_node.outputs.whole import whole_folder
from vla_policy_node.policy.assumptions import implied_transforms
from vla_policy_node.policy.options import complete_transforms
from vla_policy_node.runtime.loading import load_model
from vla_policy_node.runtime.saving import save_model
from vla_policy_node.training.demonstrations import Demonstrations

COMMAND = 'vla compress'  # whose files they are


@dataclass(frozen=True)
class CompressionRecipe:
    """What to make smaller, and the samples that tell how.

    layers: how many to remove. mlp_share: of the MLP width, what stays. demonstrations: folder
    of `vla demos`, of which `samples` frames are drawn by `seed`; None if no layer is removed.
    transform: what turns their upright pictures into what training saw, 'auto' for what the
    checkpoint says.
    """

    layers: int = 0
    mlp_share: float = 1.0
    demonstrations: Path | None = None
    samples: int = 64
    statistics_key: str = ''
    transform: str = 'auto'
    seed: int = 0


@dataclass(frozen=True)
class Compression:
    """What became of a checkpoint; each pair is before and after.

    importance: [layers], empty if nothing was measured. action_change: mean and largest change of
    normalised actions on the samples, grippers excluded; gripper_flips: share of their commands
    that changed sides, None where no action is called a gripper.
    """

    removed: tuple[int, ...]
    importance: tuple[float, ...]
    parameters: tuple[int, int]
    flops: tuple[int, int] | None = None
    action_change: tuple[float, float] | None = None
    gripper_flips: float | None = None


def compress(
    checkpoint: str,
    out: Path,
    recipe: CompressionRecipe,
    device: str = 'cpu',
    dtype: str = 'float32',
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Compression:
    """Write the smaller checkpoint into `out`, a new or empty directory, in bfloat16.

    progress: called with how many samples were run, and of how many.
    ValueError with one sentence for what cannot be made smaller this way.
    """
    directory = find_checkpoint(checkpoint)
    config = read_model_config(directory)
    _check(directory, out, config, recipe)
    model = load_model(directory, config, device, dtype)
    samples: list[TokenSequence] = []
    if recipe.demonstrations:
        statistics = read_statistics(
            read_statistics_document(directory), recipe.statistics_key, config.spec,
            config.ranges)
        samples = _samples(directory, model, statistics, recipe, progress)
    before = _parameters(model), _flops(model, samples), _actions(model, samples)
    importance = layer_importance(model.language_model, samples) if recipe.layers else ()
    removed = least_important(importance, recipe.layers) if recipe.layers else []
    remove_layers(model, removed)
    narrow_mlps(model, recipe.mlp_share)
    after = _parameters(model), _flops(model, samples), _actions(model, samples)
    result = Compression(
        tuple(removed), tuple(float(value) for value in importance), (before[0], after[0]))
    if samples:
        result = _compare(result, statistics, config.spec.grippers, before, after)
    with whole_folder(out, COMMAND) as folder:
        _write(directory, folder, model, {
            'removed_layers': removed, 'mlp_share': recipe.mlp_share,
            'from_sha256': fingerprint(directory)})
    return result


def _check(directory: Path, out: Path, config: ModelConfig, recipe: CompressionRecipe) -> None:
    if not isinstance(config, PrismaticConfig):
        raise ValueError(
            f'{directory} is a policy of the family {config.family.family}; vla compress knows '
            'how to make OpenVLA-OFT and CogACT smaller.')
    if not config.can(Capability.ONE_PASS):
        article = 'an' if config.family.name[0] in 'aeiou' else 'a'
        raise ValueError(
            f'{directory} has {article} {config.family.name} head; only OpenVLA-OFT with an L1 or '
            'discrete head and CogACT can be made smaller.')
    if recipe.layers and recipe.demonstrations is None:
        raise ValueError(
            'Which layers matter least is measured on samples; name a folder made by vla demos.')
    if not recipe.layers and recipe.mlp_share == 1:
        raise ValueError('Nothing is to be removed; ask for fewer layers or narrower ones.')
    least_important(torch.zeros(config.language_model.layers), recipe.layers)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f'{out} exists and is not empty; choose another directory.')


@torch.inference_mode()
def _samples(
    directory: Path, model: PrismaticVla, statistics: Statistics, recipe: CompressionRecipe,
    progress: Callable[[int, int], None],
) -> list[TokenSequence]:
    """What enters the language model, for frames drawn from all demonstrations."""
    config = model.config
    implied, _ = implied_transforms(directory, config, statistics.key)
    transforms = complete_transforms(
        dict.fromkeys(config.spec.cameras, recipe.transform), config.spec.cameras, implied)
    inputs = model.family.load_encoder(directory, config, statistics, transforms)
    normalise = inputs.preprocessor.normaliser.to(next(model.parameters()).device)
    source = Demonstrations(recipe.demonstrations)
    count = min(recipe.samples, len(source))
    chosen = np.random.default_rng(recipe.seed).choice(len(source), count, replace=False)
    weight = next(model.parameters())
    sequences = []
    for index in chosen:
        frame = source.load(int(index))
        pictures, proprio, ids = inputs.encode(frame.images, frame.proprio, frame.instruction)
        pixels = normalise(pictures.to(weight.device)).to(weight.dtype)
        proprio = proprio.to(weight.device, weight.dtype)
        ids = ids.to(weight.device)
        sequences.append(model.assemble(model.visual(pixels, ids), proprio, ids))
        progress(len(sequences), count)
    return sequences


@torch.inference_mode()
def _actions(model: PrismaticVla, samples: Sequence[TokenSequence]) -> Tensor | None:
    """[samples, K, A], normalised."""
    if not samples:
        return None
    nobody = ForwardPass()
    return torch.cat([
        model.to_actions(model.decode(model.prefill(sequence, nobody), nobody)).float()
        for sequence in samples])


def _flops(model: PrismaticVla, samples: Sequence[TokenSequence]) -> int:
    """Of an inference on the first sample."""
    if not samples:
        return 0
    rows = samples[0].states.shape[1]
    layers = len(model.language_model.layers)
    return sum(count_flops(model.config, [rows] * layers).values())


def _parameters(model: PrismaticVla) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _compare(
    result: Compression, statistics: Statistics, grippers: Sequence[int], before: tuple,
    after: tuple,
) -> Compression:
    """Add what the samples tell; before, after: parameters, FLOPs and actions."""
    motion = [place for place in range(before[2].shape[-1]) if place not in grippers]
    change = (after[2] - before[2]).abs()[..., motion]
    # Normalised, the middle is 0; what stays as it is runs from 0 to 1.
    middle = torch.where(torch.from_numpy(statistics.action_mask), 0.0, 0.5)
    sides = [(actions.cpu() >= middle)[..., list(grippers)] for actions in (before[2], after[2])]
    return replace(
        result,
        flops=(before[1], after[1]),
        action_change=(float(change.mean()), float(change.max())),
        gripper_flips=float((sides[0] != sides[1]).float().mean()) if grippers else None,
    )


def _write(directory: Path, out: Path, model: PrismaticVla, provenance: dict) -> None:
    decoder = model.config.language_model
    document = dict(read_document(directory))
    document['text_config'] = {
        **document.get('text_config', {}),
        'num_hidden_layers': decoder.layers, 'intermediate_size': decoder.mlp_width}
    document['compressed'] = provenance
    # The name of a public checkpoint tells how it was evaluated; `out` does not.
    if rows := model.config.action_rows or published_action_rows(directory):
        document['action_rows'] = rows
    if speaks_vicuna(directory):
        document['hf_llm_id'] = 'lmsys/vicuna-7b-v1.5'
    statistics = read_statistics_document(directory)
    key = next(iter(statistics)) if len(statistics) == 1 else ''
    if turned := implied_transforms(directory, model.config, key)[0]:
        document['camera_transforms'] = turned
    for name, content in (
        ('config.json', document),
        ('preprocessor_config.json', read_normalisation(directory)),
        ('dataset_statistics.json', statistics),
    ):
        (out / name).write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    shutil.copyfile(place(directory, 'tokenizer.json'), out / 'tokenizer.json')
    for path in directory.glob('method--*.safetensors'):  # what methods have learnt
        shutil.copyfile(path, out / path.name)
    save_model(out, model.bfloat16())
