"""Which files make up a checkpoint directory, and where the documents in it are.

Public checkpoints do not write down which head they have; the files that fine-tuning left tell,
and each family knows its own. `vision_backbone--*` beside any of them says that the prompt
modulates the vision encoders (FiLM); `checkpoints/*.pt` and nothing else is a release of CogACT.
`"head"`, `"proprio"` and `"cameras"` in config.json have the last word.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from vla_policy_node.checkpoints import cogact_release, reading, value_files
from vla_policy_node.checkpoints.adapter import base_of, place
from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.published import names_of
from vla_policy_node.checkpoints.reading import listed
from vla_policy_node.checkpoints.statistics import key_of_suite

PARTS = ('action_head', 'proprio_projector', 'noisy_action_projector', 'vision_backbone')

_OF_TENSORS = ('.pt', '.pth', '.bin', '.safetensors')
MOST_FILES = 256  # of one model; the public ones have four
# Weights in other formats, and what to do with them.
_NOT_READ = {
    'pytorch_model*': 'load the model where it was trained and save it with save_pretrained, '
    'which writes model.safetensors',
    'global_step*': 'gather the shards of DeepSpeed with the zero_to_fp32.py beside them, and '
    'save the model with save_pretrained',
    '*.distcp': 'gather the shards of FSDP with torch.distributed.checkpoint.format_utils, and '
    'save the model with save_pretrained',
    '*.gguf': 'take the files from which it was made',
}


def read_json(directory: Path, name: str) -> Mapping:
    """Parse a file of the checkpoint; ValueError if it is missing or damaged.

    An entry that is looked up and not there is a ValueError, too.
    """
    path = place(directory, name)
    if not os.path.lexists(path):
        raise ValueError(f'{directory} has no {name}; is it a complete checkpoint?')
    return reading.read_json(path)


def read_document(directory: Path) -> Mapping:
    """Parse `config.json`; of CogACT's releases, say the same in the words of our own."""
    document = read_json(directory, 'config.json')
    release = cogact_release.find(directory)
    return cogact_release.describe(release, document) if release else document


def read_statistics_document(directory: Path) -> Mapping:
    """Parse `dataset_statistics.json`, or the `norm_stats` of a pre-trained `config.json`.

    What openpi and LeRobot have instead (`checkpoints.value_files`) is put into the same form.
    """
    if not os.path.lexists(place(directory, 'dataset_statistics.json')):
        document = read_json(directory, 'config.json')
        if Entries(document, 'config.json').inside('norm_stats', {}).names():
            return document['norm_stats']
        if value_files.are_there(directory, document):
            return {
                name: {kind: {key: numbers.tolist() for key, numbers in part.items()}
                       for kind, part in zip(('proprio', 'action'), pair, strict=True)}
                for name, pair in value_files.read_values(directory).sets.items()}
    return read_json(directory, 'dataset_statistics.json')


def statistics_key(directory: Path, suite: str) -> str:
    """Return the data set of a suite of tasks, '' if the checkpoint knows only one, whichever.

    ValueError with one sentence if it knows several, and none of the suite.
    """
    names = read_statistics_document(directory)
    if len(names) <= 1:
        return ''
    key = key_of_suite(names, suite)
    if not key:
        raise ValueError(
            f'{directory} knows several data sets and none of {suite!r}; choose one as '
            f'statistics_key (--statistics-key): {listed(names)}.')
    return key


def read_normalisation(directory: Path) -> Mapping:
    """Parse `preprocessor_config.json`, which CogACT's releases do not have."""
    if cogact_release.find(directory) and not (directory / 'preprocessor_config.json').is_file():
        return cogact_release.NORMALISATION
    return read_json(directory, 'preprocessor_config.json')


def speaks_vicuna(directory: Path) -> bool:
    """Whether the language model is a Vicuna, as in OpenVLA v0.1, whose prompts are others.

    By what config.json says, or by the public name, which is all that the public code looks at.
    """
    path = place(directory, 'config.json')
    entries = Entries(reading.read_json(path) if path.exists() else {}, str(path))
    named = [str(entries.value(key, '')) for key in ('llm_backbone_id', 'hf_llm_id')]
    called = names_of(directory) | names_of(path.parent)
    return any('vicuna' in name.lower() for name in named) or any(
        'openvla-v01' in name.lower() for name in called)


def model_files(directory: Path) -> list[Path]:
    """Files with the vision-language model, at least one; of an adapter, those of its base."""
    if base := base_of(directory):
        return model_files(base)
    if release := cogact_release.find(directory):
        return [release]
    files = sorted(directory.glob('model*.safetensors'))
    if not files:
        for pattern, remedy in _NOT_READ.items():
            if other := sorted(path.name for path in islice(directory.glob(pattern), MOST_FILES)):
                raise ValueError(
                    f'{directory} has no model*.safetensors, only {listed(other)}, which is not '
                    f'read; {remedy}.')
        raise ValueError(f'{directory} has no model*.safetensors; is it a complete checkpoint?')
    if len(files) > MOST_FILES:
        raise ValueError(
            f'{directory} has {len(files)} files model*.safetensors, and no model has more than '
            f'{MOST_FILES}; leave those of one model.')
    return files


def part_files(directory: Path, part: str) -> list[Path]:
    """Files of one part: none if the checkpoint does not have it, several if it is ambiguous.

    Of an adapter with no part beside it they are those of its base.
    """
    if release := cogact_release.find(directory):
        return [release] if part == 'action_head' else []
    if not any(directory.glob('*--*checkpoint*')) and (base := base_of(directory)):
        return part_files(base, part)
    patterns = (f'{part}--*checkpoint*.safetensors', f'{part}--*checkpoint*.pt')
    files = sorted(path for pattern in patterns for path in directory.glob(pattern))
    if not files and (others := sorted(path.name for path in directory.glob(f'{part}*.*')
                                       if path.suffix in _OF_TENSORS)):
        raise ValueError(
            f'{directory} has {listed(others)}, and this part is looked for as '
            f'{part}--*checkpoint.pt (or .safetensors); rename it.')
    return files


def part_file(directory: Path, part: str) -> Path:
    """Return the one file of a part that the policy needs; ValueError for none or several."""
    files = part_files(directory, part)
    if len(files) != 1:
        found = listed(path.name for path in files) or 'none'
        raise ValueError(
            f'{directory} must hold one file {part}--*checkpoint.pt (or .safetensors), '
            f'found {found}.'
        )
    return files[0]
