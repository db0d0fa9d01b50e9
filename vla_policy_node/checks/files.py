"""Checks of a checkpoint's files, without running it: statistics, constants, layout."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vla_policy_node import families
from vla_policy_node.checkpoints import cogact_release
from vla_policy_node.checkpoints.adapter import place
from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.layout import (
    PARTS,
    model_files,
    part_files,
    read_json,
    read_normalisation,
    read_statistics_document,
)
from vla_policy_node.checkpoints.lora import target_of
from vla_policy_node.checkpoints.quantised import is_scale
from vla_policy_node.checkpoints.reading import listed, plain
from vla_policy_node.checkpoints.scaled_statistics import ScaledStatistics
from vla_policy_node.checkpoints.statistics import key_of_suite
from vla_policy_node.checkpoints.tensor_files import unwrapped
from vla_policy_node.checkpoints.weights import INDEX, MODEL, open_tensors
from vla_policy_node.checks.findings import FAIL, PASS, SKIP, Finding
from vla_policy_node.checks.prompts import (
    LLAMA2_PROMPTS,
    PALIGEMMA_IDS,
    PALIGEMMA_PROMPT,
    PALIGEMMA_WORDS,
    uses_llama2_tokenizer,
)
from vla_policy_node.encoding.preprocess import normalisation
from vla_policy_node.encoding.task_prompt import TOKENIZERS, TaskPrompt
from vla_policy_node.families import create_network
from vla_policy_node.families.prismatic_config import PrismaticConfig
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.transformer import DecoderConfig
from vla_policy_node.runtime.loading import DTYPES

# The vision-language model of every public checkpoint; 2 bytes each in bfloat16.
PUBLIC_TENSORS, PUBLIC_PARAMETERS = 982, 7_541_237_184
# Tensors that no forward pass of this architecture uses.
_UNUSED = re.compile(
    r'language_model\.lm_head\.weight|vision_backbone\.\w*featurizer\.(norm|attn_pool)\..*|'
    r'vision_backbone\.\w*featurizer\.blocks\.\d+\..*|net\.history_embedder\..*'
)
# ImageNet's mean and deviation, rounded to bfloat16 as in training, and SigLIP's.
NORMALISATION = {
    'mean': ((0.484375, 0.455078125, 0.40625), (0.5, 0.5, 0.5)),
    'std': ((0.228515625, 0.2236328125, 0.224609375), (0.5, 0.5, 0.5)),
}


@dataclass(frozen=True)
class StoredTensor:
    """What a file says of one tensor."""

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return self.parameters * self.dtype.itemsize


def check_files(directory: Path, config: ModelConfig) -> Finding:
    """Every tensor is there, in the right size; totals are those of the index and in public."""
    everything = read_headers(directory)
    stored = {target: tensor for name, tensor in everything.items()
              if not is_scale(name) and (target := target_of(name))}
    problems = [*_missing(directory, config, stored), *_index_problems(directory, everything)]
    total = sum(tensor.parameters for tensor in stored.values())
    if config.language_model == DecoderConfig() and config.image_px == 224:
        counted = len(stored), total
        if not config.vision_reads_prompt and counted != (PUBLIC_TENSORS, PUBLIC_PARAMETERS):
            problems.append(
                f'the model files hold {counted[0]} tensors of {counted[1]:,} parameters, public '
                f'checkpoints {PUBLIC_TENSORS} of {PUBLIC_PARAMETERS:,}'
            )
    if problems:
        return Finding('files', FAIL, '; '.join(problems) + '.')
    files = {tensor.file for tensor in stored.values()}
    size = sum(tensor.size_bytes for tensor in stored.values())
    parts = ', '.join(path.name for part in PARTS for path in part_files(directory, part))
    return Finding(
        'files', PASS,
        f'{len(stored)} tensors, {total:,} parameters, {size:,} bytes in {len(files)} '
        f'file{"s"[: len(files) > 1]}; {parts or "no part files"}',
    )


def check_statistics(directory: Path, config: ModelConfig, suite: str, key: str) -> Finding:
    """The requested data set exists, and its numbers are usable."""
    document = read_statistics_document(directory)
    known = listed(document)
    if suite and not key:
        key = key_of_suite(document, suite)
        if not key:
            return Finding('statistics', FAIL, f'none for suite {suite!r}; there are {known}')
    try:
        family = families.of(config)
        chosen = [family.load_statistics(directory, config, name)
                  for name in ([key] if key else [*document] or [''])]
    except ValueError as error:
        return Finding('statistics', FAIL, str(error))
    # Where no number is called a gripper, the last may be one.
    grippers = config.spec.grippers or (len(config.spec.actions) - 1,)
    for statistics in chosen:
        if isinstance(statistics, ScaledStatistics):  # `checks.values` looks at those
            continue
        if not np.delete(statistics.action_mask, grippers).all():
            return Finding(
                'statistics', FAIL,
                f'{statistics.key!r} leaves a motion dimension as it is (mask '
                f'{statistics.action_mask.tolist()}); actions would not be un-normalised')
    if len(chosen) > 1:
        return Finding('statistics', PASS, f'for {known}; a policy has to name one of them')
    kept = [quantity.name for quantity, scaled in zip(
        config.spec.actions, chosen[0].action_mask, strict=True) if not scaled]
    but = f' but {listed(kept)}' if kept else ''
    return Finding(
        'statistics', PASS, f'{chosen[0].key}; all numbers of an action{but} are un-normalised')


def check_normalisation(directory: Path, config: ModelConfig) -> Finding:
    """Pixels are normalised with the constants of training."""
    if not isinstance(config, PrismaticConfig):
        return Finding('normalisation', SKIP, f'{config.family.family} has constants of its own')
    document = read_normalisation(directory)
    if document == cogact_release.NORMALISATION:
        return Finding('normalisation', PASS, "timm's constants, as CogACT's authors use them")
    found_constants = normalisation(document)
    for (name, expected), found in zip(NORMALISATION.items(), found_constants, strict=True):
        if not np.allclose(found, expected, rtol=0, atol=1e-7):
            return Finding(
                'normalisation', FAIL,
                f'tvf_normalize_params has {name} {found}; DINOv2 and SigLIP were trained with '
                f'{list(expected)}')
    return Finding('normalisation', PASS, 'DINOv2 rounded to bfloat16, SigLIP 0.5')


def check_prompt_ids(directory: Path, config: ModelConfig, recorded: bool = False) -> Finding:
    """The tokenizer gives the ids of the public ones.

    recorded: prompts come from recordings, and there need not be a tokenizer.
    """
    if recorded and has_no_tokenizer(directory, config):
        return Finding('prompt ids', SKIP, 'no tokenizer; prompts are those of the recordings')
    try:
        encoder = families.of(config).load_prompt(directory, config)
        if isinstance(encoder, TaskPrompt) and config.language_model.vocabulary in PALIGEMMA_WORDS:
            return _check_paligemma(encoder)
        if not uses_llama2_tokenizer(directory, config):
            return Finding('prompt ids', SKIP, 'this checkpoint has a vocabulary of its own')
        for instruction, expected in LLAMA2_PROMPTS.items():
            ids = tuple(encoder.encode(instruction))
            if ids != expected:
                return Finding(
                    'prompt ids', FAIL,
                    f'{instruction!r} becomes {list(ids)} instead of {list(expected)}')
    except ValueError as error:
        return Finding('prompt ids', FAIL, str(error))
    return Finding('prompt ids', PASS, f'{len(LLAMA2_PROMPTS)} instructions as in training')


def has_no_tokenizer(directory: Path, config: ModelConfig) -> bool:
    """Whether a checkpoint lacks all files that any family takes for its tokenizer."""
    folders = families.of(config).tokenizer_folders(directory)
    return not any(place(folder, name).exists() for folder in folders for name in TOKENIZERS)


def _check_paligemma(encoder: TaskPrompt) -> Finding:
    ids = tuple(encoder.ids_of(PALIGEMMA_PROMPT))
    if ids != PALIGEMMA_IDS:
        return Finding('prompt ids', FAIL, f'{PALIGEMMA_PROMPT!r} becomes {list(ids)} instead of '
                       f'{list(PALIGEMMA_IDS)}; take the tokenizer of PaliGemma')
    return Finding('prompt ids', PASS, "a prompt becomes PaliGemma's ids")


def check_dtypes(directory: Path, model: torch.nn.Module, dtype: str) -> Finding:
    """All weights have the requested dtype, and all are finite."""
    stored = {'model': _kinds(tensor.dtype for tensor in read_headers(directory).values())}
    for part in PARTS:
        for path in part_files(directory, part):
            with open_tensors(path) as (names, get):
                stored[part] = _kinds(get(name).dtype for name in names)
    for name, tensor in model.named_parameters():
        # Quantised weights are made from finite numbers, or they would not be there.
        if type(tensor.data) is torch.Tensor and not torch.isfinite(tensor).all():
            return Finding('dtype', FAIL, f'{name} holds NaN or infinity')
    if {tensor.dtype for tensor in model.parameters()} != {DTYPES[dtype]}:
        found = _kinds(tensor.dtype for tensor in model.parameters())
        return Finding('dtype', FAIL, f'loaded as {found} instead of {dtype}')
    kinds = ', '.join(f'{part} {names}' for part, names in stored.items())
    return Finding('dtype', PASS, f'stored as {kinds}; computed in {dtype}; all finite')


def _kinds(dtypes: Iterable[torch.dtype]) -> str:
    return '/'.join(sorted({str(dtype).removeprefix('torch.') for dtype in dtypes}))


def read_headers(directory: Path) -> dict[str, StoredTensor]:
    """Names, dtypes and shapes in the model files; their data is not read."""
    stored = {}
    for path in model_files(directory):
        with open_tensors(path) as (names, get):
            for name in sorted(names):
                tensor = get(name)
                stored[name] = StoredTensor(path.name, tensor.dtype, tuple(tensor.shape))
    return stored


def _missing(
    directory: Path, config: ModelConfig, stored: dict[str, StoredTensor]
) -> list[str]:
    with torch.device('meta'):
        wanted = create_network(config).state_dict()
    names = {}
    for name, tensor in wanted.items():
        kind, file_name = families.of(config).locate(name, config)
        if kind == MODEL or cogact_release.find(directory):  # which keep all in one file
            names[file_name] = tuple(tensor.shape)
    problems = []
    if missing := sorted(names.keys() - stored.keys()):
        problems.append(f'{len(missing)} tensors are missing, first {missing[0]}')
    wrong = [name for name in names.keys() & stored.keys() if stored[name].shape != names[name]]
    if wrong:
        name = min(wrong)
        problems.append(
            f'{len(wrong)} tensors have another shape than config.json says, first {name}: '
            f'{list(stored[name].shape)} instead of {list(names[name])}')
    unused = re.compile(families.of(config).unused)
    unknown = [name for name in stored if name not in names
               and not _UNUSED.fullmatch(name) and not unused.fullmatch(name)
               # A FiLM backbone has a file of its own, and what it replaces may still be there.
               and not (config.vision_reads_prompt and name.startswith('vision_backbone.'))]
    if unknown:
        problems.append(f'{len(unknown)} tensors have no place in this model, first '
            f'{plain(unknown[0])}')
    return problems


def _index_problems(directory: Path, stored: dict[str, StoredTensor]) -> list[str]:
    if not (directory / INDEX).exists():
        return []
    index = Entries(read_json(directory, INDEX), INDEX)
    places = index.inside('weight_map')
    files = {unwrapped(name): places.word(name) for name in places.names()}
    problems = []
    astray = [n for n in sorted(files.keys() | stored.keys())
              if n not in stored or files.get(n) != stored[n].file]
    if astray:
        problems.append(
            f'{len(astray)} tensors are not in the files that {INDEX} names, first '
            f'{plain(astray[0])}')
    total = sum(tensor.size_bytes for tensor in stored.values())
    promised = index.inside('metadata', {}).number('total_size', 0, 1e18, total)
    if promised != total:
        problems.append(f'the files hold {total:,} bytes of tensors, the index says {promised:,}')
    return problems
