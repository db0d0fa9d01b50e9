"""`vla bench policy` measures what it says; the times themselves are not a test's."""
# ruff: noqa: F811 - fixtures are imported by name

import json
import math

import checkpoint_variants as variants
import numpy as np
import pytest
import torch
from rich.console import Console
from small_machine import observe, small_machine  # noqa: F401
from tiny_model import CASES, inputs_of, load_model
from torch.utils import flop_counter
from training_data import make_demonstrations

from vla_policy_node.acceleration.lightvla import LightVla
from vla_policy_node.bench import policy_run
from vla_policy_node.bench.pictures import observe_demonstrations
from vla_policy_node.bench.public_structure import PublicStructure, wasted_flops
from vla_policy_node.bench.random_policy import SIZES, load_random, stored_bytes, write_files
from vla_policy_node.bench.rates import Rates
from vla_policy_node.families import config_of, count_flops, create_network
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.policy.interface import InferenceRequest
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.training.demonstrations import Demonstrations


def test_without_a_world_the_pictures_are_those_that_begin_demonstrations(tmp_path):
    folder = make_demonstrations(tmp_path / 'demos', episodes=3)
    source = Demonstrations(folder)
    seen = observe_demonstrations(folder, 4)
    for index, observation in enumerate(seen):
        frame = source.load(int(np.flatnonzero(source.frames[:, 1] == 0)[index % 3]))
        assert observation.instruction == frame.instruction
        assert all((observation.images[name] == frame.images[name]).all() for name in frame.images)


@pytest.mark.parametrize('methods', [(), ('lightvla',)], ids=['dense', 'lightvla'])
@torch.inference_mode()
def test_the_baseline_computes_the_same_actions_for_more_flops(methods):
    model, inputs = load_model(), inputs_of(CASES[0])
    made = [LightVla() for _ in methods]
    counts = {}
    for name, runner in (('plain', model), ('public', PublicStructure(model))):
        with flop_counter.FlopCounterMode(display=False) as counter:
            counts[name] = runner(inputs, ForwardPass(made)), counter.get_flop_counts()['Global']
    (plain, own), (public, theirs) = counts['plain'], counts['public']
    torch.testing.assert_close(public, plain, rtol=0, atol=1e-5)
    # torch counts attention on GPUs only; neither count has it here.
    difference = sum(theirs.values()) - sum(own.values())
    config = model.config
    kept = made[0].report().kept.sum() if made else config.visual_tokens
    rows = int(kept) + inputs[2].shape[1] + config.other_rows
    attention = 4 * config.language_model.width * rows * (rows - config.action_slots)
    attention += sum(
        2 * config.cameras * 2 * (encoder.grid[0] * encoder.grid[1]) ** 2 * encoder.width
        for encoder in (config.dino, config.siglip))
    assert difference == sum(wasted_flops(config, rows).values()) - attention


def test_a_floor_is_arithmetic_or_memory_whichever_takes_longer():
    machine = Rates({'float32': 1e9, 'bfloat16': 4e9}, byte_s=1e8)
    assert machine.floor_ms(2e9, 1e6, 'float32') == pytest.approx(2000)
    assert machine.floor_ms(2e9, 1e8, 'bfloat16') == pytest.approx(1000)
    assert machine.floor_ms(2e9, 0, 'int8') == pytest.approx(500)  # computes in bfloat16


def test_a_random_policy_needs_no_file_and_acts(tmp_path):
    directory = write_files(tmp_path / 'policy', variants.CONFIG)
    policy = LocalPolicy.load(directory, methods=('lightvla',), load_model=load_random)
    chunk = policy.infer(InferenceRequest(observe(1)[0]))
    assert chunk.actions.std() > 0
    assert 1 <= chunk.tokens_kept <= chunk.tokens_total == 32


def test_random_weights_are_the_same_in_every_dtype_and_take_their_size(tmp_path):
    directory = write_files(tmp_path / 'policy', variants.CONFIG)
    config = config_of({**variants.CONFIG, 'head': 'l1'})
    wide, narrow = (load_random(directory, config, 'cpu', dtype)
                    for dtype in ('float32', 'bfloat16'))
    for one, other in zip(wide.parameters(), narrow.parameters(), strict=True):
        assert torch.equal(one.bfloat16(), other)
    assert stored_bytes(wide) == 2 * stored_bytes(narrow)
    assert stored_bytes(wide) == 4 * sum(weight.numel() for weight in wide.parameters())


def test_the_public_size_is_public():
    config = config_of(SIZES['']['7b'])
    with torch.device('meta'):
        model = create_network(config)
    decoder = sum(weight.numel() for weight in model.language_model.parameters())
    assert decoder == 6_738_939_904 - 32064 * 4096  # Llama-2-7B with 32064 words, without lm_head
    assert count_flops(config, [605] * 32)['language_model'] > 7e12


def test_every_figure_of_the_table_is_there(small_machine, tmp_path):
    directory = variants.make(tmp_path / 'policy')
    options = policy_run.Options(
        checkpoint=str(directory), repetitions=2, warm_up=1, pictures=2, clock='processor')
    files = tmp_path / 'out' / 'figures.json', tmp_path / 'out' / 'table.md'
    policy_run.run(options, *files, Console(quiet=True))
    figures = json.loads(files[0].read_text())
    ways = {(entry['method'], entry['way'], entry['dtype']): entry
            for entry in figures['contenders']}
    assert ('dense', 'public structure', 'float32') in ways
    for dtype in ('float32', 'bfloat16', 'int8', 'int4', 'float8'):
        entry = ways['lightvla', 'plain', dtype]
        timed = dtype in ('float32', 'bfloat16', 'int8')
        assert ('total_ms' in entry) == timed
        assert math.isfinite(entry['action_error']['max'])
        assert entry['floor_ms']['total'] > 0
    assert ways['dense', 'plain', 'float32']['action_error']['max'] == 0
    assert ways['dense', 'plain', 'float32']['slowest_warm_up_ms'] > 0
    assert ways['dense', 'fused', 'float32']['action_error']['max'] < 1e-4
    assert ways['dense', 'plain', 'bfloat16']['action_error']['max'] > 0
    assert ways['dense', 'plain', 'int4']['weight_bytes'] < (
        ways['dense', 'plain', 'int8']['weight_bytes'])
    assert set(figures['cameras']['ms']) == {'exact', 'fast'}
    table = files[1].read_text()
    assert '| dense, plain | bfloat16 |' in table
    assert '| fast |' in table


def test_only_what_is_asked_for_runs(small_machine, tmp_path):
    directory = variants.make(tmp_path / 'policy')
    options = policy_run.Options(
        checkpoint=str(directory), repetitions=1, warm_up=1, pictures=1,
        only=['dense, plain, float32'])
    policy_run.run(options, tmp_path / 'figures.json', None, Console(quiet=True))
    (entry,) = json.loads((tmp_path / 'figures.json').read_text())['contenders']
    assert (entry['method'], entry['way'], entry['dtype']) == ('dense', 'plain', 'float32')


@pytest.mark.parametrize(('changes', 'sentence'), [
    ({'size': '7b'}, '--device cuda'),
    ({'size': '9b', 'device': 'cuda'}, 'size must be one of 7b'),
    ({'size': '7b', 'device': 'cuda', 'checkpoint': 'x'}, 'not both'),
    ({'clock': 'sun'}, 'clock must be one of wall, processor'),
    ({'only': ['nothing like this']}, 'no contender like nothing like this'),
])
def test_what_cannot_be_measured_is_refused_with_a_sentence(
        small_machine, changes, sentence, tmp_path):
    checkpoint = '' if 'size' in changes else str(variants.make(tmp_path / 'policy'))
    options = policy_run.Options(**{'checkpoint': checkpoint, **changes})
    with pytest.raises(ValueError, match=sentence):
        policy_run.run(options, None, None, Console(quiet=True))
