"""Recordings of openpi's transforms are compared, and what is off is found."""

import json
from pathlib import Path

import numpy as np
import pytest

from vla_policy_node.checks.findings import FAIL, PASS
from vla_policy_node.checks.golden_transforms import (
    PROMPTS,
    compare_prompts,
    compare_transforms,
    is_recording,
)

RECORDING = dict(np.load(
    Path(__file__).parents[1] / 'data' / 'values' / 'openpi_transforms.npz'))


def test_all_transforms_of_openpi_are_as_it_does_them():
    assert is_recording(RECORDING)
    compared = list(compare_transforms('openpi', RECORDING))
    assert {one.verdict for one in compared} == {PASS}, compared
    stages = {one.stage for one in compared}
    assert stages >= {'normalised', 'un-normalised', "ALOHA's joints"} | {
        f'{robot}, {kind}: answer' for robot in ('aloha', 'libero') for kind in ('pi0', 'pi05')}


@pytest.mark.parametrize(('key', 'stage'), [
    ('unnorm_actions_meanstd', 'un-normalised'), ('aloha_state_pi', "ALOHA's joints"),
    ('libero_pi0_actions_out', 'libero, pi0: answer')])
def test_another_number_is_found(key, stage):
    compared = compare_transforms('openpi', {**RECORDING, key: RECORDING[key] * 1.0001})
    assert {one.stage for one in compared if one.verdict == FAIL} == {stage}


def test_the_words_of_prompts_are_compared(tmp_path):
    def verdict(**changes):
        one = {'task': ' pick_up ', 'max_len': 20, 'state': None,
               'encoded': [['pick up', True], ['\n', False]],
               'toy_ids': [2, *(3 + byte for byte in b'pick up\n'), *[0] * 11], **changes}
        (tmp_path / PROMPTS).write_text(json.dumps([one]))
        return {compared.verdict for compared in compare_prompts(tmp_path)}

    assert verdict() == {PASS}
    assert verdict(encoded=[['pick_up', True], ['\n', False]]) == {PASS, FAIL}
    assert verdict(
        state=[0.0, -2.0], encoded=[['Task: pick up, State: 128 -1;\nAction: ', True]],
        toy_ids=[2, *(3 + byte for byte in b'Task: pick up, Stat')]) == {PASS}
