"""`vla bench methods`: finds every method, counts published sizes, reports what it is given."""

import json

import numpy as np
import pytest

from vla_policy_node import acceleration
from vla_policy_node.bench.methods_costs import Stopwatch, summarise_costs
from vla_policy_node.bench.methods_published import MODEL, published_rows
from vla_policy_node.bench.methods_report import markdown, pareto_front, write_report
from vla_policy_node.bench.methods_rows import contenders, split_usable, swept
from vla_policy_node.evaluation.contenders import parse_contender
from vla_policy_node.models.config import read_config
from vla_policy_node.models.flops import LayerRows, count_flops
from vla_policy_node.models.small import create_small_checkpoint


def test_every_method_has_a_row_and_dense_is_the_first():
    labels = [contender.label for contender in contenders()]
    assert labels[0] == 'dense'
    assert set(acceleration.available()) <= set(labels)
    assert [c.label for c in contenders(['fastv:count=9'])] == ['dense', 'fastv:count=9']


def test_a_sweep_changes_one_open_constant_at_a_time():
    assert swept(['sqap_vla'])[:2] == ['sqap_vla', 'sqap_vla:count=256']
    with pytest.raises(ValueError, match='fastv has no constant'):
        swept(['fastv'])
    varied = [parse_contender(text) for text in swept() if ':' in text]
    assert {'sp_vla', 'flashvla', 'specprune'} <= {row.methods[0] for row in varied}
    for row in varied:
        (name,) = row.methods
        ((setting, value),) = row.settings[name].items()
        assert value != acceleration.settings(name)[setting]
        acceleration.create(name, **row.settings[name])


def test_what_a_checkpoint_has_no_weights_for_is_named_with_the_reason(tmp_path):
    create_small_checkpoint(tmp_path)
    usable, refused = split_usable(contenders(), tmp_path)
    assert refused.keys() == {
        'lightvla_star', 'mole', 'deer', 'fastdrivevla',
        # For the head of CogACT.
        'efficientvla_cache', 'efficientvla_tokens+efficientvla_cache'}
    assert refused['mole'].startswith('The checkpoint has no method--mole')
    assert 'vla_cache' in [contender.label for contender in usable]


def test_published_sizes_are_counted_from_the_rows_that_run():
    chosen = [parse_contender(text) for text in (
        'dense', 'fastv', 'depth_cut', 'random_tokens:count=100', 'mole')]
    rows = {row['method']: row for row in published_rows(chosen)}
    assert 'mole' not in rows  # no weights, no row
    config = read_config({'vision_backbone_id': 'dinosiglip-vit-so-224px', 'text_config': {}})
    full = 36 + 512 + 58
    hand = {
        'dense': [full] * 32,
        'fastv': [full] * 2 + [full - 256] * 30,
        'random_tokens:count=100': [full - 412] * 32,
    }
    for label, layer_rows in hand.items():
        assert rows[label]['flops'] == sum(count_flops(config, layer_rows).values())
        assert rows[label]['model'] == MODEL
    half = [LayerRows(full, full, full)] * 15 + [LayerRows(56, full, full)]
    assert rows['depth_cut']['layers'] == 16
    assert rows['depth_cut']['flops'] == sum(count_flops(config, half).values())


def test_the_front_is_what_nothing_beats():
    points = [(3.0, 5.0), (1.0, 1.0), (2.0, 4.0), (2.5, 3.0), (2.0, 2.0), (4.0, 5.0)]
    assert pareto_front(points) == [1, 2, 0]
    assert pareto_front([(1.0, 2.0)]) == [0]


def test_the_stopwatch_counts_what_a_method_takes_and_nothing_else():
    method = acceleration.create('random_tokens')
    watch = Stopwatch([method], 'cpu')
    assert 'select_tokens' in vars(method)
    assert 'before_layer' not in vars(method)
    assert watch.ms == 0


def costs(scale=1.0):
    return [{
        'method': 'dense', 'task_id': 0, 'episode': 0, 'tokens': [512, 512], 'tokens_total': 512,
        'layers': [6, 6], 'layers_total': 6, 'reused': [False, True], 'flops': [10, 30],
        'stage_ms': {'vision': [1.0, 3.0], 'head': [1.0, 1.0]}, 'overhead_ms': [0.0, 0.0],
        'change_mean': [0.1 * scale, 0.3 * scale], 'change_max': [0.2, 0.9],
        'gripper_flips': [0, 2],
    }]


def test_costs_are_put_together():
    summary = summarise_costs(costs())
    assert summary['latency_ms'] == 3.0
    assert summary['flops'] == 20
    assert summary['reused'] == 0.5
    assert summary['action_change_mean'] == pytest.approx(0.2)
    assert (summary['action_change_max'], summary['gripper_flips']) == (0.9, 2)


@pytest.mark.parametrize('judged', [True, False])
def test_a_report_is_a_table_a_list_of_rows_and_a_picture(tmp_path, judged):
    rows = []
    for index, label in enumerate(('dense', 'fastv')):
        row = {'method': label, 'model': 'small', 'success_rate': None, 'episodes': 0,
               **summarise_costs(costs(index))}
        if judged:
            row |= {'success_rate': 0.5, 'episodes': 10, 'wilson_low': 0.24, 'wilson_high': 0.76,
                    'against_dense': None if label == 'dense' else
                    {'only_second': 2, 'only_first': 1, 'p_value': 1.0}}
        rows.append(row)
    document = {
        'command': 'vla bench methods',
        'checkpoint': {'name': 'small', 'sha256': 'ab' * 32, 'trained': False,
                       'architecture': 'tiny'},
        'suite': 'libero_object', 'layout': 'shuffled', 'tasks': [0], 'seed': 0,
        'machine': {'processor': 'one', 'threads_per_worker': 1, 'versions': {'torch': '2'}},
        'refused': {'mole': 'It has no weights.'},
        'rows': [*rows, *published_rows([parse_contender('dense')])],
    }
    table, data, picture = (
        next(path for path in write_report(document, tmp_path) if path.suffix == suffix)
        for suffix in ('.md', '.json', '.png'))
    loaded = json.loads(data.read_text())
    assert [row['method'] for row in loaded] == ['dense', 'fastv', 'dense']
    assert {'model', 'success_rate', 'episodes', 'tokens', 'flops', 'latency_ms'} <= set(loaded[0])
    text = table.read_text()
    assert text == markdown(document)
    assert '**This checkpoint is untrained.**' in text
    assert ('+2 -1, 1' in text) == judged
    assert 'It has no weights.' in text
    assert picture.stat().st_size > 10_000
    assert np.isfinite(loaded[2]['flops'])
