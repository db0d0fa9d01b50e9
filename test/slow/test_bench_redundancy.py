"""`vla bench redundancy`: the recipe of a larger policy, with few steps and two short episodes."""

import json
import math
import re
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file
from training_data import make_demonstrations

from vla_policy_node.bench import methods, redundancy, trained
from vla_policy_node.bench.redundancy import (
    PARTS,
    Request,
    as_long_as,
    config_of,
    run,
    train_parts,
)
from vla_policy_node.commands.train import stage_config
from vla_policy_node.families import read_model_config

ROOT = Path(__file__).parents[2]
CONSOLE = Console(width=100)
# As deep as the recipe's policy, but narrow.
SIZES = ('layers=12', 'width=16', 'heads=2', 'vision_blocks=2', 'vision_width=16',
         'vision_heads=2')


@pytest.fixture(scope='module')
def request_(tmp_path_factory):
    root = tmp_path_factory.mktemp('redundancy')
    return Request(
        root / 'out', SIZES, make_demonstrations(root / 'object', 3),
        make_demonstrations(root / 'scenes', 3, layout='scattered'), smoke=True)


@pytest.fixture(scope='module')
def document(request_):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, 'published_rows', lambda chosen: [])  # test_bench_methods.py
        return run(request_, CONSOLE)


def weights(request_, folder):
    return load_file(request_.out / folder / 'checkpoint' / 'model.safetensors')


def test_every_part_learns_from_the_one_before(document, request_):
    for part in PARTS:
        folder = request_.out / part.folder
        config = read_model_config(folder / 'checkpoint')
        assert config.trained
        assert (config.language_model.layers, config.language_model.width) == (12, 16)
        lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
        assert all(math.isfinite(value) for line in lines for value in line.values()
                   if isinstance(value, float))
        record = json.loads((folder / 'run.json').read_text())
        assert record['finished'] and record['lengths'][-1]['steps'] == 2
    changed = {part.folder: part.start for part in PARTS if part.start}
    for folder, start in changed.items():
        before, after = weights(request_, start), weights(request_, folder)
        name = 'language_model.model.layers.11.self_attn.q_proj.weight'
        assert (before[name] != after[name]).any(), folder


def test_the_table_has_dense_lightvla_and_what_needs_no_training(document, request_):
    (model,) = document['models']
    rows = {row['method'].partition('@')[0] + '@' * ('@' in row['method']): row
            for row in model['rows']}
    assert {'dense', 'dense@', 'lightvla@', 'fastv', 'specprune', 'sqap_vla', 'vla_cache',
            'efficientvla_tokens', 'depth_cut', 'flashvla'} <= rows.keys()
    assert all(row['episodes'] == 2 for row in rows.values())
    assert {row['layers_total'] for row in rows.values()} == {12}
    assert rows['depth_cut']['layers'] == 6
    assert rows['dense']['tokens'] == 512 > rows['lightvla@']['tokens'] > 0
    assert model['refused'].keys() >= {'deer', 'mole', 'efficientvla_cache'}
    assert 'development layouts' in (request_.out / 'table' / 'methods.md').read_text()


def test_what_is_done_is_not_done_again_and_nothing_else_is_taken_for_it(
        document, request_, monkeypatch):
    def refuse(run, console):
        raise AssertionError(f'trained again: {run.out}')

    monkeypatch.setattr(trained, 'run_stage', refuse)
    again = train_parts(request_, CONSOLE)
    assert [*again] == [part.folder for part in PARTS]
    other = Request(request_.out, ('layers=13', *SIZES[1:]), request_.demonstrations,
                    request_.scenes, smoke=True)
    with pytest.raises(ValueError, match=r'ground was trained with layers=12, not 13; take anoth'):
        train_parts(other, CONSOLE)
    record = request_.out / 'dense' / 'run.json'
    text = record.read_text()
    record.write_text(json.dumps({**json.loads(text), 'base': 'f' * 64}))
    with pytest.raises(ValueError, match=r'dense was trained from another checkpoint than .*cl'):
        train_parts(request_, CONSOLE)
    record.write_text(text)


def test_the_dense_policy_that_is_trained_longer_has_the_budget_of_lightvla():
    request = Request(None)
    longer, lightvla = (config_of(part, request).document() for part in PARTS[-2:])
    apart = {name for name in longer if longer[name] != lightvla.get(name)}
    assert apart == {'stage'}
    page = (ROOT / 'docs' / 'evaluating_in_the_world.md').read_text()
    command = page.partition('vla train behavior_cloning')[2].partition('done')[0]
    written = [a or b for a, b in re.findall(r"--set (?:'(.*?)'|(\S+))", command)]
    seed, *changes = written
    assert seed == 'seed=$seed'
    assert stage_config('behavior_cloning', None, changes).document() == longer
    assert {*lightvla} - {*longer} == set(stage_config('lightvla', None, ()).objective)


def test_impossible_requests_are_refused_before_anything_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(redundancy, '_recorded', lambda *_: pytest.fail('recorded'))
    for size, why in (
        ('layers=65', 'layers is 65; take 1 to 64'), ('layers', '^--size takes layers, width'),
        ('batch=3', r"like layers=24, not 'batch=3'\.$")):
        with pytest.raises(ValueError, match=why):
            train_parts(Request(tmp_path, (size,)), CONSOLE)
    with pytest.raises(ValueError, match='nowhere is no folder of demonstrations'):
        train_parts(Request(tmp_path, demonstrations=tmp_path / 'nowhere'), CONSOLE)
    with pytest.raises(ValueError, match="no kind of device 'tpu'"):
        train_parts(Request(tmp_path, device='tpu'), CONSOLE)
    assert not any(tmp_path.iterdir())


def test_the_recipe_is_of_a_policy_with_layers_and_parameters_to_spare():
    from vla_policy_node.families import config_of as sizes
    from vla_policy_node.families import create_network
    from vla_policy_node.runtime.small import sized_config

    changes = dict(size.split('=') for size in redundancy.SIZES)
    network = create_network(sizes(sized_config({k: int(v) for k, v in changes.items()})))
    assert network.config.language_model.layers >= 12
    assert sum(parameter.numel() for parameter in network.parameters()) > 10_000_000


def test_a_control_names_its_changes_as_the_command_line_takes_them():
    changes = as_long_as(stage_config('lightvla', None, ('steps=7',)))
    assert changes[0] == 'steps=7'
    assert stage_config('behavior_cloning', None, changes).weighed == ('action', 'readout')
