"""Recordings of what surrounds pi0 and pi0.5: pictures, prompts, states, actions; and all at once.

The recordings' tokenizer is a toy: id 2, then 3 + each byte. Words are compared as text, so that
nothing depends on it, and ids are taken as they were recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vla_policy_node.checkpoints.reading import read_json
from vla_policy_node.checkpoints.statistics import Statistics
from vla_policy_node.checks.findings import Comparison, absolute, compare, exact, relative
from vla_policy_node.checks.golden_decoders import Case
from vla_policy_node.encoding.padded import PADDINGS, PaddedPreprocessor, resize_with_padding
from vla_policy_node.encoding.task_prompt import FORMS, state_bins
from vla_policy_node.families.pi0 import Pi0
from vla_policy_node.nn.forward_pass import ForwardPass

PIXELS, STATE, ACTIONS = absolute(5e-6), relative(5e-6), relative(2e-5)
LEVEL = absolute(1)
PROMPTS = 'prompts.json'
_IMAGE = 'image_u8__'


def is_end_to_end(recording: Mapping[str, np.ndarray]) -> bool:
    """Whether these arrays are of observations and the actions that answered them."""
    return recording.keys() >= {'t0_state', 't0_noise', 't0_actions'}


def is_of_pictures(recording: Mapping[str, np.ndarray]) -> bool:
    """Whether these arrays are of pictures fitted into a square."""
    return recording.keys() >= {'img0_u8', 'lerobot0', 'size'}


def compare_pictures(network: Pi0, case: Case) -> Iterator[Comparison]:
    """Pixels of the cameras that are there, from what they saw."""
    pictures = PaddedPreprocessor(network.config.padding, network.config.image_px)
    for index, camera in enumerate(network.config.spec.cameras):
        if f'{_IMAGE}{camera}' not in case:
            continue
        seen = case['image_masks'][:, index]
        images = case[f'{_IMAGE}{camera}'].cpu().numpy()
        made = torch.stack([pictures(image) for image in images]).to(seen.device)
        yield compare('pictures', PIXELS, made[seen], case['pixels'][seen, index], case.name)


def compare_resizing(case: Case) -> Iterator[Comparison]:
    """Pictures as LeRobot and openpi fit them."""
    side, index = int(case['size']), 0
    while f'img{index}_u8' in case:
        image = case[f'img{index}_u8'].cpu().numpy()
        pixels = PaddedPreprocessor('lerobot', side)(image)
        yield from case.compare('pictures: LeRobot', PIXELS, pixels, f'lerobot{index}')
        openpi = torch.from_numpy(
            resize_with_padding(image, (side, side), PADDINGS['openpi']).copy())
        yield from case.compare('pictures: openpi', exact, openpi, f'openpi_pil{index}_u8')
        yield from case.compare(
            'pictures: openpi in JAX', LEVEL, openpi, f'openpi_jax{index}_u8')
        index += 1


@torch.inference_mode()
def compare_end_to_end(
    network: Pi0, statistics: Statistics, case: Case, prompts: Sequence[Mapping[str, str]],
) -> Iterator[Comparison]:
    """Observations -> actions of the robot; a camera that was not recorded was missing."""
    pictures = PaddedPreprocessor(network.config.padding, network.config.image_px)
    index = 0
    while f't{index}_state' in case:
        key, device = f't{index}_', case['t0_noise'].device
        raw = case[f'{key}state'].cpu().numpy()
        state = statistics.normalise_proprio(raw)
        yield from case.compare('state', STATE, torch.from_numpy(state[None]), f'{key}state_norm')
        if index < len(prompts):
            yield from _compare_words(network, case, prompts[index], state, index)
        images = [case[f'{key}{_IMAGE}{camera}'].cpu().numpy()
                  for camera in network.config.spec.cameras if f'{key}{_IMAGE}{camera}' in case]
        pixels = torch.stack([pictures(image) for image in images])[None].to(device)
        normalised = _answer(
            network, pixels, torch.from_numpy(state[None]).float().to(device),
            case[f'{key}lang_tokens'][case[f'{key}lang_masks']][None], case[f'{key}noise'])
        yield from case.compare(
            'end to end: normalised', ACTIONS, normalised, f'{key}actions_norm')
        actions = statistics.unnormalise_actions(normalised[0].double().cpu().numpy(), raw)
        yield from case.compare(
            'end to end: actions', ACTIONS, torch.from_numpy(actions[None]), f'{key}actions')
        index += 1


def compare_actions(network: Pi0, statistics: Statistics, case: Case) -> Iterator[Comparison]:
    """Recorded normalised actions in units of the data, where these do not count from a state."""
    if 'actions' in case and 'actions_norm' in case:
        normalised = case['actions_norm'].double().cpu().numpy()
        made = statistics.unnormalise_actions(normalised, np.zeros(network.config.proprio_size))
        yield from case.compare('actions', ACTIONS, torch.from_numpy(made), 'actions')


def read_prompts(pack: Path) -> list[Mapping[str, str]]:
    """Tasks and the words of their prompts, one per observation; none if the pack has none."""
    path = pack / PROMPTS
    if not path.is_file():
        return []
    return [one for one in read_json(path, kind=list) if isinstance(one, dict)]


def _compare_words(
    network: Pi0, case: Case, prompt: Mapping[str, str], state: np.ndarray, index: int
) -> Iterator[Comparison]:
    form = FORMS[network.config.prompt]
    words = form.text(str(prompt.get('task', '')), state_bins(state) if form.state else None)
    if 'prompt' in prompt:
        yield Comparison(
            'prompt', float(words != prompt['prompt']), 0.0, case.name,
            '' if words == prompt['prompt'] else f'is {words!r}')
    ids = case[f't{index}_lang_tokens'][case[f't{index}_lang_masks']]
    toy = torch.tensor([2, *(3 + byte for byte in words.encode())], device=ids.device)
    yield compare('prompt: ids', exact, toy[: len(ids)], ids, case.name)


def _answer(
    network: Pi0, pixels: Tensor, state: Tensor, ids: Tensor, noise: Tensor
) -> Tensor:
    nobody = ForwardPass()
    sequence = network.assemble(network.visual(pixels, None), state, ids, padded=False)
    return network.to_actions(network.denoise(network.prefill(sequence, nobody), nobody, noise))
