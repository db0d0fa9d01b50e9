"""The worked example of docs/adding_a_method.md is true: its method and its test run."""

import re
import sys
import types
from pathlib import Path

import torch
from tiny_model import CASES, inputs_of, load_model

from vla_policy_node import acceleration

TEXT = (Path(__file__).parents[2] / 'docs' / 'adding_a_method.md').read_text(encoding='utf-8')


def test_the_example_is_a_method_and_its_test_passes(monkeypatch):
    method, test = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)
    module = types.ModuleType('vla_policy_node.acceleration.largest')
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(method, 'largest.py', 'exec'), module.__dict__)
    monkeypatch.setitem(acceleration._METHODS, 'largest', module.Largest)

    namespace = {}
    exec(compile(test, 'test_largest.py', 'exec'), namespace)
    namespace['test_the_longest_stay']()
    model, inputs = load_model(), inputs_of(CASES[0])
    off = acceleration.create('largest', count=32)
    assert torch.equal(model(*inputs, methods=[off]), model(*inputs))


def test_files_that_it_names_exist():
    root = Path(__file__).parents[2]
    for name in re.findall(r'`((?:test|training|config|vla_policy_node)/[\w/.]+)`', TEXT):
        if 'largest' not in name:
            assert (root / name).exists() or (root / 'vla_policy_node' / name).exists(), name
