"""Files that acceleration methods have learnt are read whole and finite, or refused."""

import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_model import CONFIG

from vla_policy_node import acceleration
from vla_policy_node.acceleration import deer, fastdrivevla, lightvla_star, mole
from vla_policy_node.acceleration.fastdrivevla import ForegroundScorer
from vla_policy_node.acceleration.mole import LayerRouter

WIDTH, LAYERS = CONFIG.language_model.width, CONFIG.language_model.layers


def prepare(name, directory):
    method = acceleration.create(name)
    method.prepare(directory, CONFIG)
    return method


def refusal_of(name, directory):
    with pytest.raises(ValueError) as caught:
        prepare(name, directory)
    text = str(caught.value)
    assert text.endswith('.')
    assert text.isprintable()
    return text


def router():
    torch.manual_seed(0)
    return {**LayerRouter(WIDTH, LAYERS).state_dict(), 'run': torch.tensor(2)}


def scorer():
    torch.manual_seed(0)
    return ForegroundScorer(CONFIG.language_model).state_dict()


def write(path, tensors, **texts):
    save_file({name: t.clone() for name, t in tensors.items()}, path, texts)


@pytest.mark.parametrize(('run', 'sentence'), [
    (torch.tensor(-1), 'how many layers run'),
    (torch.tensor(LAYERS + 1), 'how many layers run'),
    (torch.tensor([1, 2]), 'how many layers run'),
    (torch.tensor(torch.nan), 'NaN or infinity in run'),
])
def test_a_router_that_runs_no_possible_number_of_layers(tmp_path, run, sentence):
    write(tmp_path / mole.FILE_NAME, router() | {'run': run})
    assert sentence in refusal_of('mole', tmp_path)


@pytest.mark.parametrize(('name', 'file', 'make'), [
    ('mole', mole.FILE_NAME, router), ('fastdrivevla', fastdrivevla.FILE_NAME, scorer)])
@pytest.mark.parametrize('damage', ['nan', 'missing', 'shape', 'pipe'])
def test_weights_that_are_not_the_methods(tmp_path, name, file, make, damage):
    tensors = make()
    write(tmp_path / file, tensors)
    prepare(name, tmp_path)
    first = next(iter(tensors))
    if damage == 'nan':
        tensors[first] = torch.full_like(tensors[first], torch.nan)
    elif damage == 'missing':
        del tensors[first]
    elif damage == 'shape':
        tensors[first] = torch.zeros(3)
    write(tmp_path / file, tensors)
    if damage == 'pipe':
        (tmp_path / file).unlink()
        os.mkfifo(tmp_path / file)
    assert file in refusal_of(name, tmp_path)


@pytest.mark.parametrize(('queries', 'layer'), [
    (torch.zeros(WIDTH), '0'),
    (torch.zeros(0, WIDTH), '0'),
    (torch.zeros(4, WIDTH, 1), '0'),
    (torch.full((4, WIDTH), torch.inf), '0'),
    (torch.zeros(4, WIDTH, dtype=torch.int32), '0'),
    (torch.zeros(4, WIDTH), '-1'),
    (torch.zeros(4, WIDTH), '9' * 5000),
    (torch.zeros(4, WIDTH), 'first'),
])
def test_queries_that_cannot_ask(tmp_path, queries, layer):
    write(tmp_path / lightvla_star.FILE_NAME, {'queries': queries}, layer=layer)
    assert 'no queries that can be used' in refusal_of('lightvla_star', tmp_path)


def test_queries_without_their_layer_or_of_another_width(tmp_path):
    save_file({'queries': torch.zeros(4, WIDTH)}, tmp_path / lightvla_star.FILE_NAME)
    assert 'no queries that can be used' in refusal_of('lightvla_star', tmp_path)
    write(tmp_path / lightvla_star.FILE_NAME, {'queries': torch.zeros(4, 2 * WIDTH)}, layer='0')
    assert 'is for another model' in refusal_of('lightvla_star', tmp_path)


@pytest.mark.parametrize(('exits', 'thresholds'), [
    (torch.tensor([2]), torch.zeros(2)),
    (torch.tensor([2.5]), torch.zeros(1)),
    (torch.tensor(2), torch.zeros(2)),
    (torch.tensor([LAYERS]), torch.zeros(1)),
    (torch.tensor([2]), torch.tensor([np.nan])),
])
def test_thresholds_of_no_exit(tmp_path, exits, thresholds):
    write(tmp_path / deer.FILE_NAME, {'exits': exits, 'thresholds': thresholds})
    assert deer.FILE_NAME in refusal_of('deer', tmp_path)


@pytest.mark.parametrize('dtype', [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_in_a_kind_of_number_that_is_not_read(tmp_path, dtype):
    for name, file, tensors in (
        ('mole', mole.FILE_NAME, router()),
        ('fastdrivevla', fastdrivevla.FILE_NAME, scorer()),
        ('lightvla_star', lightvla_star.FILE_NAME, {'queries': torch.zeros(4, WIDTH)}),
    ):
        first = next(iter(tensors))
        write(tmp_path / file, tensors | {first: tensors[first].to(dtype)}, layer='0')
        kind = str(dtype).removeprefix('torch.')
        assert f'stores {first} as {kind}' in refusal_of(name, tmp_path)
