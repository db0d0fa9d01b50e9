"""Recordings of SmolVLA: an inference from pixels to actions, stage by stage.

The network runs as it does on a robot; what its parts see and make is looked at from outside.
Recordings with other settings of the same weights (`variants.json`) take what they lack from the
first inference. Rows of words and cameras that are not there are not compared.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vla_policy_node import families
from vla_policy_node.checkpoints.conventions import ALOHA_SMOLVLA
from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.lerobot_features import camera_name
from vla_policy_node.checkpoints.reading import listed, read_json
from vla_policy_node.checks import (
    golden_smolvla_flow,
    golden_smolvla_training,
    golden_values,
)
from vla_policy_node.checks.files import has_no_tokenizer
from vla_policy_node.checks.findings import Comparison, exact
from vla_policy_node.checks.golden_decoders import FLOAT, Case, LayerInputs, Watch, allowed
from vla_policy_node.encoding.padded import PADDINGS, PaddedPreprocessor
from vla_policy_node.families import smolvla
from vla_policy_node.families.smolvla import PADDING, SmolVla
from vla_policy_node.nn import siglip
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.sequence import TokenSequence
from vla_policy_node.runtime.loading import load_model

VARIANT, VARIANTS, PROMPTS = 'variant_', 'variants.json', 'prompt_tokens.json'
# What a recording of other settings takes from the first inference.
_LENT = re.compile(r'raw_.*|noise|state_norm')
_CAMERA = 'raw_image__'
Said = Callable[[str, Iterator[Comparison]], Iterator[Comparison]]


def is_recording(recording: Mapping[str, np.ndarray]) -> bool:
    """Whether these arrays are of an inference of SmolVLA, or of a step of its training."""
    return 'lang_mask' in recording and (
        recording.keys() >= {'prefix_embs', 'actions_normalized'}
        or golden_smolvla_training.is_recording(recording))


def compare_recordings(
    directory: Path, pack: Path, recordings: Mapping[str, Mapping[str, np.ndarray]], device: str,
    statistics_key: str, said: Said,
) -> Iterator[Comparison]:
    """Compare what a pack holds of a policy, in the order of its recordings.

    said: turns what a recording lacks into a sentence.
    """
    golden = Golden(directory, device, statistics_key)
    variants = Entries(
        read_json(pack / VARIANTS) if (pack / VARIANTS).is_file() else {}, VARIANTS)
    first = next((arrays for arrays in recordings.values() if is_recording(arrays)
                  and arrays.keys() >= {'raw_state', 'actions_normalized'}), {})
    if (pack / PROMPTS).is_file() and has_no_tokenizer(directory, golden.network.config):
        yield Comparison('prompts', 0.0, np.inf, PROMPTS, 'not compared: there is no tokenizer')
    elif (pack / PROMPTS).is_file():
        prompt = golden.family.load_prompt(directory, golden.network.config)
        yield from said(PROMPTS, golden_values.compare_prompts(
            PROMPTS, read_json(pack / PROMPTS, kind=list), prompt))
    for name, arrays in recordings.items():
        case = Case(name, arrays, device)
        if golden_values.is_of_pictures(arrays):
            yield from said(name, golden_values.compare_pictures(name, arrays, PADDINGS[PADDING]))
        elif golden_values.is_of_numbers(arrays):
            yield from said(name, golden_values.compare_numbers(name, arrays, ALOHA_SMOLVLA))
        elif not is_recording(arrays):
            yield Comparison('other recordings', 0.0, np.inf, name, f'not compared: {name}')
        else:
            if golden_smolvla_training.is_recording(arrays):
                made = _compare_training(golden, case)
            else:
                settings = variants.inside(name.removeprefix(VARIANT), {})
                made = _compare_variant(golden, case, first, settings)
            yield from said(name, made)
            if rest := case.rest():
                yield Comparison(
                    'other arrays', 0.0, np.inf, name, f'not compared: {listed(rest)}')


class Golden:
    """A checkpoint in float32, also with other settings."""

    def __init__(self, directory: Path, device: str, statistics_key: str):
        config = families.read_model_config(directory)
        network = load_model(directory, config, device, 'float32')
        assert isinstance(network, SmolVla)
        self.directory, self.network, self.family = directory, network, families.of(config)
        self.document = read_json(directory / 'config.json')
        self.statistics = self.family.load_statistics(directory, config, statistics_key)
        self.preprocessor = PaddedPreprocessor(PADDING, config.image_px)

    def with_settings(self, changes: Mapping) -> SmolVla:
        """Return the network with the same weights and other entries of config.json."""
        network = copy.copy(self.network)
        network.config = self.family.read_config(
            self.directory, {**self.document, **changes}, ())
        return network


    def cameras_of(self, case: Case, missing: Collection[str] = ()) -> list[str]:
        """Names in the recording of the cameras that are there, in the policy's order."""
        named = {camera_name(feature): feature.removeprefix('observation.images.')
                 for feature in self.document['input_features'] if feature not in missing}
        cameras = [named[camera] for camera in self.network.config.spec.cameras
                   if camera in named]
        recorded = [camera for camera in cameras if f'{_CAMERA}{camera}' in case]
        return recorded or cameras

    def prepared(self, case: Case, camera: str) -> Tensor:
        """Raw pictures of a camera -> [B, 3, H, W] from -1 to 1."""
        raw = case[f'{_CAMERA}{camera}']
        prepared = [self.preprocessor(picture) for picture in raw.cpu().numpy()]
        return torch.stack(prepared).to(raw.device)


class RecordedInputs(NamedTuple):
    """What a recording gives to the network: as `PolicyNetwork.assemble`, pictures for rows.

    pictures: one [B, 3, H, W] for each camera. seen: [B, cameras], which of them are there.
    """

    pictures: list[Tensor]
    proprio: Tensor
    prompt_ids: Tensor
    seen: Tensor


def inputs_of(golden: Golden, case: Case, missing: Collection[str] = ()) -> RecordedInputs:
    """Inputs as recorded, or made of raw ones; missing: features of cameras that are not there.

    In the place of cameras that are not there come pictures of -1 at the end, which are hidden.
    """
    pictures = []
    for index, camera in enumerate(golden.cameras_of(case, missing)):
        key = f'image{index}_prepared'
        pictures.append(case[key] if key in case else golden.prepared(case, camera))
    masks = [case[key] for key in numbered('image{}_mask', case)]
    pictures += [torch.full_like(pictures[0], -1)] * (len(masks) - len(pictures))
    ids = case['lang_tokens'].masked_fill(~case['lang_mask'], golden.network.config.pad_id)
    seen = torch.stack(masks, dim=1) if masks else ids.new_ones(
        len(ids), len(pictures), dtype=torch.bool)
    return RecordedInputs(pictures, case['state_norm'], ids, seen)


def assemble(network: SmolVla, inputs: RecordedInputs) -> TokenSequence:
    """The prefix, with rows for all that was recorded."""
    visual = network.visual(torch.stack(inputs.pictures, dim=1), None, ForwardPass())
    return network.assemble(visual, inputs.proprio, inputs.prompt_ids, True, inputs.seen)


@torch.inference_mode(False)
@torch.enable_grad()
def _compare_training(golden: Golden, case: Case) -> Iterator[Comparison]:
    """One training step of the weights that LeRobot trains."""
    network = golden.network
    if 'raw_action' in case:
        actions = golden.statistics.normalise_actions(_numbers(case['raw_action']))
        yield from case.compare(
            'training: actions', FLOAT, torch.from_numpy(actions), 'action_norm')
    yield from _compare_state(golden, case)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(golden_smolvla_training.TRAINED))
    try:
        sequence = assemble(network, inputs_of(golden, case))
        yield from golden_smolvla_training.compare_training(network, sequence, case)
    finally:
        network.zero_grad()
        network.requires_grad_(False)


@torch.inference_mode()
def _compare_variant(
    golden: Golden, case: Case, first: Mapping[str, np.ndarray], settings: Entries
) -> Iterator[Comparison]:
    """One inference with other entries of config.json, or without some cameras."""
    if 'noise' not in case:
        for key in filter(_LENT.fullmatch, first):
            case.add(key, first[key])
    changes = settings.inside('config', {}).items()
    guided = Entries(changes, VARIANTS).inside('rtc_config', {})
    missing = settings.value('missing_cameras', [])
    assert isinstance(missing, list)
    network = golden.with_settings(changes) if changes else golden.network
    inputs = inputs_of(golden, case, missing)
    yield from _compare_inputs(golden, network, inputs, case)
    sequence = assemble(network, inputs)
    yield from _compare_prefix(network, sequence, case)
    yield from golden_smolvla_flow.compare_flow(
        network, golden.statistics, sequence, case, guided)


def _compare_inputs(
    golden: Golden, network: SmolVla, inputs: RecordedInputs, case: Case
) -> Iterator[Comparison]:
    config, scale = network.config, network.config.language_model.embedding_scale
    for index, camera in enumerate(golden.cameras_of(case)):
        if f'image{index}_prepared' in case and f'{_CAMERA}{camera}' in case:
            yield from case.compare(
                'pictures', FLOAT, golden.prepared(case, camera), f'image{index}_prepared')
    for index, picture in enumerate(inputs.pictures):
        features = network.vision(picture)
        yield from case.compare(
            'vision encoder', FLOAT, features, f'image{index}_vision_last_hidden')
        rows = network.connector(siglip.shuffle_pixels(features, config.pixel_shuffle))
        yield from case.compare('connector', FLOAT, rows, f'image{index}_connector')
        yield from case.compare(
            'visual tokens', FLOAT, rows * scale, f'image{index}_embedding_scaled')
    words = network.language_model.embed_words(case['lang_tokens'])
    yield from case.compare('embeddings of the words', FLOAT, words, 'lang_embedding_scaled')
    yield from _compare_state(golden, case)
    padded = functional.pad(inputs.proprio, (0, config.state_room - inputs.proprio.shape[1]))
    yield from case.compare('state', FLOAT, padded, 'state_padded')
    yield from case.compare(
        'row of the state', FLOAT, network.state_proj(padded), 'state_embedding')


def _compare_state(golden: Golden, case: Case) -> Iterator[Comparison]:
    if 'raw_state' in case:
        state = golden.statistics.normalise_proprio(_numbers(case['raw_state']))
        yield from case.compare('state', FLOAT, torch.from_numpy(state), 'state_norm')


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()


def _compare_prefix(
    network: SmolVla, sequence: TokenSequence, case: Case
) -> Iterator[Comparison]:
    """Rows of the language model; those that fill up a recording beyond ours are cut off."""
    bias = sequence.key_bias
    assert bias is not None  # the sequence is made so
    valid, ours = ~bias.isneginf(), slice(sequence.states.shape[1])
    rows, layers = (slice(None), ours), (slice(None), slice(None), ours)
    blocks = torch.zeros_like(valid)
    blocks[:, sequence.span('proprio')] = True
    yield from case.compare('prefix: rows that count', exact, valid, 'prefix_pad_mask', part=rows)
    yield from case.compare('prefix: blocks', exact, blocks, 'prefix_att_mask', part=rows)
    yield from case.compare('prefix: positions', exact, sequence.positions,
                            'prefix_position_ids', valid, rows)
    yield from case.compare('prefix: who sees whom', exact,
                            allowed([sequence], valid, smolvla.VISIBILITY),
                            'prefix_att_2d', part=(slice(None), ours, ours))
    yield from case.compare(
        'prefix: rows', FLOAT, sequence.states, 'prefix_embs', valid[..., None], rows)
    watch, counted = Watch(), valid[..., None]
    with LayerInputs(network.language_model) as inputs:
        states = network.language_model(sequence, hooks=watch)
    yield from case.compare(
        'prefix: every layer', FLOAT, inputs.states, 'prefix_layer_inputs', counted, layers)
    for name, parts in (('keys', watch.keys), ('values', watch.values)):
        made = torch.stack(parts).transpose(2, 3)
        yield from case.compare(
            f'prefix: cached {name}', FLOAT, made, f'prefix_{name}', counted[..., None], layers)
    yield from case.compare(
        'prefix: last states', FLOAT, states, 'prefix_last_hidden', counted, rows)


def numbered(form: str, case: Case) -> Iterator[str]:
    """Names of this form that were recorded, from 0 on."""
    index = 0
    while (name := form.format(index)) in case:
        yield name
        index += 1
