"""Recordings of what surrounds a network in LeRobot: pictures, numbers of a robot, prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from vla_policy_node.checkpoints.conventions import Aloha
from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.scaling import MODES, Rule, Scaling
from vla_policy_node.checks.findings import Comparison, compare, each, exact, relative
from vla_policy_node.encoding.padded import Padding, resize_with_padding
from vla_policy_node.encoding.prompt import PromptEncoder
from vla_policy_node.encoding.task_prompt import TaskPrompt

FLOAT = relative(5e-5)
_STATISTIC = 'stat_'
MOST_PX = 4096


def is_of_pictures(recording: Mapping[str, np.ndarray]) -> bool:
    """Whether these are pictures that were shrunk and filled up."""
    return recording.keys() >= {'in0', 'out0', 'hw0'}


def compare_pictures(
    name: str, recording: Mapping[str, np.ndarray], padding: Padding
) -> Iterator[Comparison]:
    """Levels from 0 to 255 against pixels [3, H, W] from -1 to 1."""
    for index in range(len(recording)):
        if f'in{index}' not in recording:
            return
        height, width = (min(int(side), MOST_PX) for side in recording[f'hw{index}'][2:4])
        levels = resize_with_padding(recording[f'in{index}'], (height, width), padding)
        pixels = np.moveaxis(np.asarray(levels, np.float32) / 127.5 - 1, -1, 0)
        yield compare('pictures, shrunk and filled up', FLOAT, pixels,
                      recording[f'out{index}'], name)


def is_of_numbers(recording: Mapping[str, np.ndarray]) -> bool:
    """Whether these are numbers that were normalised in every way."""
    return recording.keys() >= {'x', 'stat_mean', 'norm_MEAN_STD'}


def compare_numbers(
    name: str, recording: Mapping[str, np.ndarray], aloha: Aloha
) -> Iterator[Comparison]:
    """Normalising there and back by each mode, and ALOHA's joints."""
    # LeRobot computes with statistics of this precision.
    statistics = {key.removeprefix(_STATISTIC): value.astype(np.float32).astype(np.float64)
                  for key, value in recording.items() if key.startswith(_STATISTIC)}
    numbers = recording['x']
    for mode in MODES:
        line = Scaling.of(Rule(mode), statistics, numbers.shape[-1])
        for key, value in ((f'norm_{mode}', line.normalise(numbers)),
                           (f'unnorm_{mode}', line.unnormalise(numbers))):
            if key in recording:
                yield compare('normalisation', each(1e-5), value, recording[key], name)
    for source, key, change in (
        ('aloha_state_in', 'aloha_state_decoded', aloha.state_in),
        ('aloha_action_in', 'aloha_action_encoded', aloha.actions_out),
        ('aloha_action_in', 'aloha_action_encoded_inverse', aloha.actions_in),
    ):
        if recording.keys() >= {source, key}:
            yield compare("ALOHA's joints", FLOAT, change(recording[source]), recording[key], name)


def compare_prompts(
    name: str, recorded: Sequence[object], prompt: PromptEncoder
) -> Iterator[Comparison]:
    """Ids of tasks, cut where training cut them."""
    assert isinstance(prompt, TaskPrompt)
    for index, one in enumerate(recorded):
        entries = Entries(one, name, f'[{index}]')
        ids, mask = (entries.value(key) for key in ('tokens', 'mask'))
        if not isinstance(ids, list) or not isinstance(mask, list) or len(ids) != len(mask):
            raise entries.error('tokens', 'a list of ids, and mask one as long', ids)
        wanted = [number for number, real in zip(ids, mask, strict=True) if real]
        made = prompt.cut(prompt.tokenise(entries.word('task')))
        yield compare('prompts', exact, np.array(made), np.array(wanted), name)
