"""Loading needs little memory beyond the mapped files, whatever the size of the checkpoint."""

import json
import subprocess
import sys

import checkpoint_variants as variants
import pytest
import torch
from safetensors.torch import save_file

from vla_policy_node import families
from vla_policy_node.families import config_of, create_network

pytestmark = pytest.mark.slow  # checkpoints of hundreds of MB, in processes of their own

MB = 10**6
# Most of it is Python modules that loading imports, which does not grow with the checkpoint.
LIMIT = 120 * MB
LARGE = {
    **variants.CONFIG,
    'text_config': {'hidden_size': 1024, 'num_hidden_layers': 10, 'num_attention_heads': 8,
                    'intermediate_size': 3072, 'vocab_size': 4096},
}
# Reads the growth of this process's own memory while it loads, sampled at every tensor.
LOAD = '''
import sys
from pathlib import Path
from vla_policy_node import acceleration
from vla_policy_node.families import read_model_config
from vla_policy_node.runtime import loading

def anonymous():
    lines = Path('/proc/self/status').read_text().splitlines()
    (kib,) = [int(line.split()[1]) for line in lines if line.startswith('RssAnon')]
    return kib * 1024

directory, dtype, methods = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
config = read_model_config(directory)
before, peak = anonymous(), 0

def sample(share):
    global peak
    peak = max(peak, anonymous())

model = loading.load_model(directory, config, 'cpu', dtype, sample,
    methods=[acceleration.create(name) for name in methods])
print(peak - before, anonymous() - before,
      sum(tensor.nbytes for tensor in model.state_dict().values()))
'''


@pytest.fixture(scope='module')
def large(tmp_path_factory):
    """About 300 MB in bfloat16, in four shards and two parts."""
    directory = tmp_path_factory.mktemp('large')
    config = config_of(LARGE)
    (directory / 'config.json').write_text(json.dumps(LARGE))
    with torch.device('meta'):
        wanted = create_network(config).state_dict()
    files = {}
    for number, (name, tensor) in enumerate(sorted(wanted.items())):
        kind, file_name = families.of(config).locate(name, config)
        file = (f'model-{number % 4 + 1:05}-of-00004' if kind == 'model'
                else f'{kind}--1_checkpoint')
        files.setdefault(file, {})[file_name] = torch.zeros(tensor.shape, dtype=torch.bfloat16)
    for name, tensors in files.items():
        if name.startswith('action_head'):
            torch.save({f'module.{key}': value for key, value in tensors.items()},
                       directory / f'{name}.pt')
        else:
            save_file(tensors, directory / f'{name}.safetensors')
    return directory


def load(directory, dtype, *methods):
    done = subprocess.run([sys.executable, '-c', LOAD, str(directory), dtype, *methods],
                          capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()]


def test_without_a_change_of_dtype_the_files_are_the_model(large):
    peak, _, size = load(large, 'bfloat16')
    assert size > 300 * MB
    assert peak < LIMIT


def test_a_change_of_dtype_needs_the_model_and_one_tensor(large):
    peak, _, size = load(large, 'float32')
    assert size > 600 * MB
    assert peak < size + LIMIT


def test_layers_that_a_method_removes_need_no_memory(large):
    _, _, whole = load(large, 'float32')
    peak, _, size = load(large, 'float32', 'depth_cut')
    assert size < 0.6 * whole
    assert peak < size + LIMIT
