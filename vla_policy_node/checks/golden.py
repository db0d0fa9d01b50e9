"""Compares a checkpoint with recordings of the reference implementation, stage by stage.

A pack is a directory of `.npz` files in one of these forms, which are told apart by their
contents. Everything in them is either an input or compared, or said to be neither; sizes, seeds
and instructions come from the pack. The model runs in float32, whatever it will run in later.

| form | recording | see |
|---|---|---|
| OpenVLA-OFT | vision encoders to actions; training loss and gradients | `checks.golden_cases` |
| LightVLA | scores, kept tokens, actions in both row conventions; training | the same |
| preprocessing | JPEG, resize, crop, normalisation; prompt ids | `checks.golden_images` |
| pi0, pi0.5 | pixels to actions, every step of the flow; training, RTC | `checks.golden_pi` |
| SmolVLA | pixels to actions, every step of the flow; training, RTC | `checks.golden_smolvla` |
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from vla_policy_node.checkpoints.reading import foreign, plain, regular_file
from vla_policy_node.checks import (
    golden_cases,
    golden_images,
    golden_pi,
    golden_smolvla,
    golden_training,
)
from vla_policy_node.checks.findings import Comparison
from vla_policy_node.checks.golden_model import GoldenModel
from vla_policy_node.families import read_model_config

Recording = Mapping[str, np.ndarray]
PACK_BYTES = 1 << 30  # of one recording; all stages of a policy of public size have 0.2 GB
LONGEST_CHUNK = 1000
FORMS = 'OpenVLA-OFT, LightVLA, preprocessing, pi0, pi0.5 and SmolVLA'
# Kinds whose recordings have a form of their own, by the name of their family.
FAMILIES = {'pi0': golden_pi, 'pi05': golden_pi, 'smolvla': golden_smolvla}


def compare_pack(
    directory: Path, pack: Path, device: str = 'cpu', statistics_key: str = ''
) -> Iterator[Comparison]:
    """Yield how far each stage of each recording is off, in the order of the forward pass.

    ValueError with one sentence for a directory that is no pack, or a checkpoint that does not
    load.
    """
    recordings = read_pack(pack)
    config = read_model_config(directory)
    if form := FAMILIES.get(config.family.name):
        if not any(form.is_recording(recording) for recording in recordings.values()):
            yield _unusable(next(iter(recordings)), f'is of no inference of '
                            f'{config.family.family}; forms that are known: {FORMS}')
        yield from form.compare_recordings(
            directory, pack, recordings, device, statistics_key, _said)
        return
    images = {name: r for name, r in recordings.items() if golden_images.is_recording(r)}
    if images or (pack / 'prompt_ids.json').is_file():
        yield from golden_images.compare_images(directory, pack, images)
    cases = {name: r for name, r in recordings.items() if name not in images}
    if cases:
        length = _chunk_length(cases, config.action_size)
        model = GoldenModel.load(directory, device, statistics_key, length)
        yield from _compare_cases(model, cases)


def read_pack(pack: Path) -> dict[str, Recording]:
    """Read every recording of a pack; arrays only, nothing in them can run code.

    ValueError with one sentence for one that is damaged, or grows when it is unpacked.
    """
    if not pack.is_dir():
        raise ValueError(f'There is no directory {pack} with recordings.')
    recordings = {}
    for path in sorted(pack.glob('*.npz')):
        recordings[path.stem] = _read_recording(path)
    if not recordings:
        raise ValueError(f'{pack} holds no recordings (*.npz).')
    return recordings


def _read_recording(path: Path) -> Recording:
    regular_file(path, PACK_BYTES)
    with foreign(path), zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > PACK_BYTES:
        raise ValueError(
            f'{path} unpacks to {size:,} bytes, and a recording has at most {PACK_BYTES:,}; '
            'record fewer stages.'
        )
    with foreign(path), np.load(path, allow_pickle=False) as file:
        return dict(file)


def _compare_cases(
    model: GoldenModel, recordings: Mapping[str, Recording]
) -> Iterator[Comparison]:
    for name, recording in recordings.items():
        if 'images_u8' in recording:
            yield from _said(name, golden_cases.compare_case(model, name, recording))
        elif 'full_image' in recording:
            yield from _said(name, golden_cases.compare_end_to_end(model, name, recording))
        elif 'labels' in recording:
            yield from _said(name, golden_training.compare_training(
                model, name, recording, recordings))
        elif any(
                form.is_recording(recording)
                for form in FAMILIES.values()):
            yield _unusable(name, 'is of another kind of policy than the checkpoint')
        else:
            yield _unusable(name, f'is of none of the forms that are known: {FORMS}')


def _said(name: str, comparisons: Iterator[Comparison]) -> Iterator[Comparison]:
    """Yield them up to the first that cannot be made, and then why not."""
    try:
        yield from comparisons
    except KeyError as error:
        yield _unusable(name, f'lacks the array {error}')
    except (IndexError, RuntimeError, TypeError, ValueError, OverflowError) as error:
        reason = plain(next(iter(str(error).splitlines()), type(error).__name__))
        yield _unusable(name, f'does not fit this checkpoint: {reason}')


def _unusable(name: str, reason: str) -> Comparison:
    return Comparison('recording', np.inf, 0.0, name, reason)


def _chunk_length(recordings: Mapping[str, Recording], action_size: int) -> int:
    """Actions per chunk in the recordings, 0 if they do not tell."""
    for name, recording in recordings.items():
        for key, value in recording.items():
            length = 0
            if key.startswith(('normalized_actions', 'actions')) and value.ndim == 2:
                length = len(value)
            elif key == 'action_hidden' and value.ndim >= 2:
                length = value.shape[-2] // action_size
            if length > LONGEST_CHUNK:
                raise ValueError(
                    f'The recording {plain(name)} has a chunk of {length} actions; at most '
                    f'{LONGEST_CHUNK} are possible.'
                )
            if length:
                return length
    return 0
