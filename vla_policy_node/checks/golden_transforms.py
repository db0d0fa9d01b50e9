"""Recordings of openpi's transforms: numbers of robots there and back, and words of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from vla_policy_node.checkpoints.conventions import ALOHA_PI0, Convention, mask_of
from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.reading import read_json
from vla_policy_node.checkpoints.scaled_statistics import ScaledStatistics
from vla_policy_node.checkpoints.scaling import Rule, Scaling
from vla_policy_node.checks.findings import Comparison, compare, each, exact
from vla_policy_node.encoding.task_prompt import FORMS, state_bins

Recording = Mapping[str, np.ndarray]
PROMPTS = 'openpi_prompts.json'
EACH = each(2e-6)
_STATISTICS = ('mean', 'std', 'q01', 'q99')
_MODES = (('MEAN_STD', 'meanstd'), ('QUANTILES', 'quantile'))
# Robot -> what its actions count from in pi0 and in pi0.5.
_MASKS: Mapping[str, tuple[tuple[int, ...], ...]] = {
    'aloha': ((6, -1, 6, -1), (6, -1, 6, -1)), 'libero': ((6, -1), ())}


def is_recording(recording: Recording) -> bool:
    """Whether these arrays are of openpi's transforms."""
    return recording.keys() >= {'stats_state_mean', 'raw_state', 'norm_state_meanstd'}


def compare_transforms(name: str, recording: Recording) -> Iterator[Comparison]:
    """Each transform by itself, then all of them for each robot and kind of policy."""
    for mode, short in _MODES:
        yield from _normalised(name, recording, Rule.openpi(mode), short)
    for key, value, source in (
            ('aloha_state_pi', ALOHA_PI0.state_in, 'aloha_state_raw'),
            ('aloha_actions_pi', ALOHA_PI0.actions_in, 'aloha_actions_raw')):
        if recording.keys() >= {key, source}:
            yield compare("ALOHA's joints", EACH, value(recording[source]), recording[key], name)
    for robot, masks in _MASKS.items():
        for (mode, _), kind, mask in zip(_MODES, ('pi0', 'pi05'), masks, strict=True):
            convention = Convention(mask_of(mask), ALOHA_PI0 if robot == 'aloha' else None)
            yield from _robot(name, recording, robot, kind, Rule.openpi(mode), convention)


def compare_prompts(pack: Path) -> Iterator[Comparison]:
    """The words of every prompt, cleaned and with the state where there is one."""
    for entry in read_json(pack / PROMPTS, kind=list):
        one = Entries(entry, PROMPTS)
        form, bins = FORMS['openpi'], None
        if 'state' in one:
            form, bins = FORMS['state'], state_bins(np.array(one.value('state'), float))
        words = form.text(one.word('task'), bins)
        pieces = [words] if form.state else [words, '\n']
        encoded = one.value('encoded')
        wanted = [piece[0] for piece in encoded] if isinstance(encoded, list) else []
        text = '' if pieces == wanted else f'is {pieces!r}'
        yield Comparison("openpi's prompts", float(pieces != wanted), 0.0, PROMPTS, text)
        ids = [2, *(3 + byte for byte in ''.join(pieces).encode())]
        most = one.integer('max_len', 1, 4096)
        yield compare("openpi's prompts: ids", exact, (ids + [0] * most)[:most],
                      one.value('toy_ids'), PROMPTS)


def _normalised(name: str, recording: Recording, rule: Rule, short: str) -> Iterator[Comparison]:
    for part in ('state', 'actions'):
        numbers = {key: recording[f'stats_{part}_{key}'] for key in _STATISTICS}
        raw = recording[f'raw_{part}']
        there = Scaling.of(rule, numbers, raw.shape[-1]).normalise(raw)
        yield compare('normalised', EACH, there, recording[f'norm_{part}_{short}'], name)
    answer = recording[f'model_out_{short}']
    back = Scaling.of(rule, numbers, answer.shape[-1]).unnormalise(answer)
    yield compare('un-normalised', EACH, back, recording[f'unnorm_actions_{short}'], name)


def _robot(
    name: str, recording: Recording, robot: str, kind: str, rule: Rule, convention: Convention
) -> Iterator[Comparison]:
    if f'{robot}_{kind}_actions_out' not in recording:
        return
    state, actions = (
        {key: recording[f'{robot}_stats_{part}_{key}'] for key in _STATISTICS}
        for part in ('state', 'actions'))
    raw = recording[f'{robot}_state_raw' if convention.aloha else f'{robot}_state']
    out = recording[f'{robot}_{kind}_actions_out']
    size = out.shape[-1]
    statistics = ScaledStatistics.of(
        robot, (rule, state), (rule, actions), (len(raw), size), convention)
    told = statistics.normalise_proprio(raw)
    yield compare(f'{robot}, {kind}: state', EACH, told,
                  recording[f'{robot}_{kind}_state_in'][:len(raw)], name)
    answer = recording[f'{robot}_{kind}_x0'][..., :size]
    yield compare(f'{robot}, {kind}: answer', EACH, statistics.unnormalise_actions(answer, raw),
                  out, name)
    if (target := f'{robot}_{kind}_actions_target') in recording:
        made = statistics.normalise_actions(recording[f'{robot}_actions_raw'], raw)
        yield compare(
            f'{robot}, {kind}: target', EACH, made, recording[target][..., :size], name)
