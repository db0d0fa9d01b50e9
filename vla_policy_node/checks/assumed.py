"""What a checkpoint takes for granted, all of it, and whether files and names contradict it."""

from __future__ import annotations

from pathlib import Path

from vla_policy_node import families
from vla_policy_node.checkpoints import value_files
from vla_policy_node.checkpoints.adapter import place
from vla_policy_node.checkpoints.layout import part_files, read_json, read_statistics_document
from vla_policy_node.checkpoints.published import published, published_transform
from vla_policy_node.checkpoints.reading import listed, plain
from vla_policy_node.checkpoints.statistics import STATISTICS, key_of_suite
from vla_policy_node.checkpoints.weights import stored_size
from vla_policy_node.checks.findings import FAIL, PASS, WARN, Finding
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.policy.assumptions import (
    Assumed,
    assumptions,
    borrowed_data,
    unread_steps,
)

AGAINST = 'against public name'


def all_assumptions(directory: Path, suite: str = '', key: str = '') -> list[Assumed]:
    """List them for people; ValueError for a checkpoint that cannot be read."""
    config = families.read_model_config(directory)
    statistics = _statistics(directory, suite, key)
    used = statistics.value
    if statistics.guessed:  # data sets that turn their pictures alike need not be told apart
        keys = [*read_statistics_document(directory)]
        turned = {published_transform(directory, name)[0] for name in keys}
        used = keys[0] if len(turned) == 1 else ''
    return [*assumptions(directory, config, used), statistics, *borrowed_data(directory),
            *unread_steps(directory), *_words(directory, config)]


def check_assumptions(directory: Path, config: ModelConfig, found: list[Assumed]) -> Finding:
    """Nothing that is taken for granted contradicts the public name of the checkpoint."""
    against = [one.name for one in found if AGAINST in one.source]
    known = published(directory)
    if known and known.head != config.family.name:
        against.insert(0, 'decoding')
    if known and against:
        return Finding(
            'assumptions', WARN,
            f'{listed(against)}: not as in the public checkpoint {known.name}; if this is one, '
            'its download is incomplete or its config.json was changed')
    return Finding('assumptions', PASS, 'no public name says something else')


def check_proprio(directory: Path, config: ModelConfig) -> Finding:
    """The state goes into the network if, and only if, there are weights that read it."""
    files = part_files(directory, 'proprio_projector')
    if files and not config.proprio:
        return Finding(
            'proprio', FAIL,
            f'{files[0].name} reads the state, and by config.json the policy is not told it; '
            'remove "proprio": false, or the file if it belongs to another policy')
    size = stored_size(directory, 'proprio_projector', 'fc1.weight')
    if config.proprio and size and size != config.proprio_size:
        return Finding(
            'proprio', FAIL, f'{files[0].name} reads {size} numbers, and config.json names '
            f'{config.proprio_size}; name as many under "state" there')
    if config.proprio and not files:
        return Finding('proprio', PASS, f'{config.proprio_size} numbers, read by the model itself')
    return Finding('proprio', PASS, f'{size} numbers, as the projector reads them' if size else
                   'none, and no projector')


def _statistics(directory: Path, suite: str, key: str) -> Assumed:
    document = read_statistics_document(directory)
    file = STATISTICS if place(directory, STATISTICS).is_file() else 'config.json: norm_stats'
    if value_files.are_there(directory, read_json(directory, 'config.json')):
        file = value_files.read_values(directory).source or file
    if key:
        return Assumed('statistics', key, 'as asked')
    if suite and (key := key_of_suite(document, suite)):
        return Assumed('statistics', key, f'{file}, by the suite')
    if len(document) == 1:
        return Assumed('statistics', plain(next(iter(document))), f'the only one in {file}')
    return Assumed(
        'statistics', f'one of {len(document)}', f'{file}; not chosen', guessed=True)


def _words(directory: Path, config: ModelConfig) -> list[Assumed]:
    family, path = families.of(config), place(directory, 'tokenizer.json')
    try:
        prompt = family.load_prompt(directory, config)
    except ValueError:  # `files.check_prompt_ids` says why
        problem = 'cannot be used' if path.exists() else 'missing'
        return [Assumed('tokenizer', problem, path.name)]
    words = prompt.text('{instruction}').replace('\n', '\\n')
    return [Assumed('tokenizer', prompt.path.name, 'file'),
            Assumed('prompt', words, f'{config.family.family}, default')]
