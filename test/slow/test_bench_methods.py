"""`vla bench methods`: finds every method, counts published sizes, reports what it is given."""

# ruff: noqa: F401, F811 - fixtures are imported by name

import json
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_up_episodes import made_up
from rich.console import Console
from training_data import small_config
from typer.testing import CliRunner

from vla_policy_node import acceleration, cli
from vla_policy_node.bench import methods as bench
from vla_policy_node.bench.methods_costs import (
    TIMED,
    Costs,
    Stopwatch,
    clock_of,
    load_of,
    summarise_costs,
)
from vla_policy_node.bench.methods_plot import group_of
from vla_policy_node.bench.methods_published import MODELS, published_rows
from vla_policy_node.bench.methods_report import markdown, write_report
from vla_policy_node.bench.methods_rows import contenders, share_out, split_usable, swept
from vla_policy_node.evaluation import run_plan
from vla_policy_node.evaluation.contenders import parse_contender
from vla_policy_node.families import count_flops
from vla_policy_node.nn.denoising import DiffusionStep
from vla_policy_node.nn.flops import LayerRows
from vla_policy_node.outputs.listing import LIST
from vla_policy_node.runtime.small import create_small_checkpoint


def test_every_method_has_a_row_and_dense_is_the_first():
    labels = [contender.label for contender in contenders()]
    assert labels[0] == 'dense'
    assert set(acceleration.available()) <= set(labels)
    assert [c.label for c in contenders(['fastv:count=9'])] == ['dense', 'fastv:count=9']


def test_a_sweep_changes_one_open_constant_at_a_time():
    assert swept(['sqap_vla'])[:2] == ['sqap_vla', 'sqap_vla:keep=0.5']
    with pytest.raises(ValueError, match='adp has no constant'):
        swept(['adp'])
    varied = [parse_contender(text) for text in swept() if ':' in text]
    assert {'sp_vla', 'fastv', 'flashvla', 'specprune'} <= {row.methods[0] for row in varied}
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


def cogact_config():
    return {**small_config(), 'head': 'cogact', 'chunk_length': 16,
            'dit': {'blocks': 1, 'width': 24, 'heads': 2}}


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """An OpenVLA-OFT and a CogACT checkpoint."""
    root = tmp_path_factory.mktemp('checkpoints')
    return [create_small_checkpoint(root / 'oft', config=small_config()),
            create_small_checkpoint(root / 'cogact', config=cogact_config())]


def test_a_contender_with_a_checkpoint_joins_the_first_model_with_its_kind_of_head(checkpoints):
    oft, cogact = checkpoints
    chosen = [parse_contender(text) for text in ('dense', f'adp@{cogact}', f'fastv@{oft}')]
    labels = [[c.label for c in share] for share in share_out(chosen, [oft, cogact, cogact])]
    assert labels == [['dense', f'fastv@{oft}'], ['dense', f'adp@{cogact}'], ['dense']]
    with pytest.raises(ValueError, match=r'kind of action head \(diffusion transformer\)'):
        share_out(chosen, [oft])


OFT, COGACT = MODELS


def published(*texts):
    rows = published_rows([parse_contender(text) for text in texts])
    return {(row['model'], row['method']): row for row in rows}


def test_published_sizes_are_counted_from_the_rows_that_run():
    rows = published('dense', 'fastv', 'depth_cut', 'random_tokens:count=100', 'deer')
    assert (OFT.name, 'deer') not in rows  # no thresholds, no row
    full = 36 + 512 + 58
    hand = {
        'dense': [full] * 32,
        'fastv': [full] * 2 + [full - 256] * 30,
        'random_tokens:count=100': [full - 412] * 32,
    }
    for label, layer_rows in hand.items():
        flops = count_flops(OFT.config, layer_rows)
        assert rows[OFT.name, label]['flops'] == sum(flops.values())
    half = [LayerRows(full, full, full)] * 15 + [LayerRows(56, full, full)]
    assert rows[OFT.name, 'depth_cut']['layers'] == 16
    assert rows[OFT.name, 'depth_cut']['flops'] == sum(count_flops(OFT.config, half).values())


def test_the_published_cogact_is_counted_with_its_head():
    rows = published('dense', 'efficientvla_cache', 'efficientvla_tokens+efficientvla_cache')
    full = 25 + 256 + 1
    assert not any(label != 'dense' for model, label in rows if model == OFT.name)
    for label, layer_rows, reused in (
        ('dense', [full] * 32, 0),
        ('efficientvla_cache', [full] * 32, 8),
        ('efficientvla_tokens+efficientvla_cache', [full] * 2 + [full - 200] * 30, 8),
    ):
        expected = count_flops(COGACT.config, layer_rows, reused)
        assert rows[COGACT.name, label]['flops_by_stage'] == expected
        assert rows[COGACT.name, label]['tokens_total'] == 256


def test_what_random_weights_would_choose_at_random_is_counted_as_published(checkpoints):
    rows = published('lightvla', f'mole@{checkpoints[0]}', 'fastdrivevla')
    assert {key: (row['tokens'], row['layers']) for key, row in rows.items()} == {
        (OFT.name, 'lightvla'): (78, 32), (COGACT.name, 'lightvla'): (39, 32),
        (OFT.name, 'mole'): (512, 18), (COGACT.name, 'mole'): (256, 18),
        (OFT.name, 'fastdrivevla'): (256, 32), (COGACT.name, 'fastdrivevla'): (128, 32)}
    assert not any(row['depends_on_input'] for row in rows.values())


@pytest.mark.parametrize(('label', 'group'), [
    ('dense', 'dense'), ('dense@runs/small', 'other weights'), ('lightvla', 'visual tokens'),
    ('fastv:count=3@runs/x/checkpoint', 'visual tokens'), ('flashvla', 'visual tokens'),
    ('vla_cache', 'keys and values'), ('ttf_vla', 'features of the last frame'),
    ('depth_cut', 'layers'), ('deer', 'layers'), ('mole', 'layers'),
    ('efficientvla_cache:interval=2', 'denoising steps'), ('ttf_vla+lightvla', 'several at once')])
def test_a_method_is_shown_among_those_that_save_the_same(label, group):
    assert group_of(label) == group


def test_every_method_has_a_group():
    assert 'other weights' not in map(group_of, acceleration.available())



def test_every_hook_of_a_method_is_timed_or_left_out_on_purpose():
    calls = {name for name in dir(acceleration.Method)
             if callable(getattr(acceleration.Method, name)) and not name.startswith('_')}
    assert calls - TIMED == {
        'changed_config', 'prepare', 'change_structure', 'change_weights', 'reset', 'report',
        'select_static', 'record_selection', 'save_untrained', 'counted_settings'}


def test_the_stopwatch_counts_what_a_method_takes_and_nothing_else():
    method = acceleration.create('random_tokens')
    watch = Stopwatch([method], 'cpu')
    assert 'select_tokens' in vars(method)
    assert 'before_layer' not in vars(method)
    assert watch.ms == 0


def test_the_stopwatch_stands_still_while_a_method_runs_the_head(monkeypatch):
    now = [0.0]

    def head(seconds, result):
        def run(*_):
            now[0] += seconds
            return result
        return run

    class Slow(acceleration.Method):
        def denoise(self, state):
            now[0] += 0.5
            noise = state.reuse(torch.zeros(1)) if state.index else state.run()[0]
            now[0] += 0.25
            return noise

    monkeypatch.setattr(DiffusionStep, 'run', head(10, ('noise', None)))
    monkeypatch.setattr(DiffusionStep, 'reuse', head(100, 'again'))
    slow = Slow()
    watch = Stopwatch([slow], 'cpu', lambda: now[0])
    states = [DiffusionStep(None, index, None, 0, None, 1.0) for index in (0, 1)]
    assert [slow.denoise(state) for state in states] == ['noise', 'again']
    assert watch.ms == pytest.approx(1500)
    states[0].run()  # by the policy, after all methods have passed
    assert watch.ms == pytest.approx(1500)


def costs(scale=1.0):
    return [{
        'method': 'dense', 'task_id': 0, 'episode': 0, 'tokens': [512, 512], 'tokens_total': 512,
        'layers': [6, 6], 'layers_total': 6, 'reused': [False, True], 'flops': [10, 30],
        'stage_ms': {'vision': [1.0, 3.0], 'head': [1.0, 1.0]}, 'overhead_ms': [0.0, 0.0],
        'wall_ms': [4.0, 6.0], 'change_mean': [0.1 * scale, 0.3 * scale],
        'change_max': [0.2, 0.9], 'gripper_flips': [0, 2], 'clock': 'processor', 'load': 1.5,
    }]


def test_costs_are_put_together():
    summary = summarise_costs(costs())
    assert summary['latency_ms'] == 3.0
    assert (summary['wall_ms'], summary['clock']) == (5.0, 'processor')
    assert summary['flops'] == 20
    assert summary['reused'] == 0.5
    assert summary['action_change_mean'] == pytest.approx(0.2)
    assert (summary['action_change_max'], summary['gripper_flips']) == (0.9, 2)


@pytest.mark.parametrize('judged', [True, False])
def test_a_report_is_a_table_a_list_of_rows_and_a_picture(tmp_path, judged):
    def model(name):
        rows = []
        for index, label in enumerate(('dense', 'fastv')):
            row = {'method': label, 'model': name, 'success_rate': None, 'episodes': 0,
                   **summarise_costs(costs(index))}
            if judged:
                row |= {
                    'success_rate': 0.5, 'episodes': 10, 'wilson_low': 0.24, 'wilson_high': 0.76,
                    'failures': {'wrong object': 1 + index, 'dropped': 4 - index},
                    'successes_by_task': {'0': 5 - index, '3': index},
                    'episodes_by_task': {'0': 5, '3': 5},
                    'against_dense': None if label == 'dense' else {
                        'only_second': 2, 'only_first': 1, 'p_value': 1.0, 'p_holm': 1.0,
                        'difference': 0.1, 'interval': [-0.22, 0.4], 'verdict': 'undecided',
                        'interval_of_tasks': [-0.2, 0.3]}}
            rows.append(row)
        return {
            'checkpoint': {'name': name, 'sha256': 'ab' * 32, 'trained': name != 'small',
                           'architecture': 'tiny'},
            'refused': {'mole': f'{name} has no weights.'},
            'load': {'mean': 1.52, 'highest': 2.48, 'cores': 2},
            'layouts_sha256': 'cd' * 32 if judged else None,
            'rows': rows,
        }

    document = {
        'command': 'vla bench methods --checkpoint small --checkpoint other',
        'suite': 'libero_object', 'layout': 'shuffled', 'split': 'test', 'clock': 'processor',
        'tasks': [0], 'seed': 1,
        'machine': {'processor': 'one', 'threads_per_worker': 1, 'versions': {'torch': '2'},
                    'date': '2026-02-03', 'code': 'vla_policy_node 9, commit abc'},
        'models': [model('small'), model('other')],
        'published': published_rows([parse_contender('dense')]),
    }
    table, data, picture = (
        next(path for path in write_report(document, tmp_path) if path.suffix == suffix)
        for suffix in ('.md', '.json', '.png'))
    loaded = json.loads(data.read_text())
    assert [(row['model'], row['method']) for row in loaded] == [
        ('small', 'dense'), ('small', 'fastv'), ('other', 'dense'), ('other', 'fastv'),
        (OFT.name, 'dense'), (COGACT.name, 'dense')]
    assert {'success_rate', 'episodes', 'tokens', 'flops', 'latency_ms'} <= set(loaded[0])
    contexts = {row['model']: row['context'] for row in loaded if 'context' in row}
    assert contexts.keys() == {'small', 'other'}
    assert contexts['other']['command'] == document['command']
    assert contexts['other']['refused'] == {'mole': 'other has no weights.'}
    text = table.read_text()
    assert text == markdown(document)
    assert f'`{document["command"]}`' in text
    assert text.count('**This checkpoint is untrained.**') == 1
    assert ('| `fastv` | 50 % (24-76) | +2 -1 | +10 (-22 to +40) | -20 to +30 | undecided | 1 |'
            in text) == judged
    assert ('| method | wrong object | dropped |' in text) == judged
    assert ('| method | 0 (of 5) | 3 (of 5) |' in text) == judged
    assert ('10 episodes a row, layouts `cdcdcdcdcdcd`. With fewer' in text) == judged
    assert 'test layouts, on which nothing was chosen' in text
    assert 'processor time of one thread' in text
    assert 'Load of the machine meanwhile 1.5, at most 2.5, on 2 cores' in text
    assert contexts['small']['split'] == 'test'
    assert contexts['small']['load']['mean'] == 1.52
    assert 'other has no weights.' in text
    assert 'torch 2, 2026-02-03, vla_policy_node 9, commit abc.' in text
    assert text.count('**flips**') == 1
    assert picture.stat().st_size > 10_000
    assert np.isfinite(loaded[-1]['flops'])


# --- the real thing, small ---


def test_both_kinds_of_models_in_one_report_and_what_was_done_is_not_done_again(
        checkpoints, tmp_path, monkeypatch):
    measured, episodes, interrupted = [], [], True
    measure, run_here = Costs.measure, run_plan._run_here

    def noted(self, task, episode, labels):
        if interrupted and measured:
            raise KeyboardInterrupt
        measured.append(labels)
        return measure(self, task, episode, labels)

    monkeypatch.setattr(Costs, 'measure', noted)
    monkeypatch.setattr(
        run_plan, '_run_here', lambda plan, units: episodes.extend(units) or run_here(plan, units))

    def go():
        return bench.bench_methods(
            tmp_path, Console(width=100), list(map(str, checkpoints)),
            methods=['random_tokens:count=5', 'efficientvla_cache'],
            also=[f'random_tokens:count=6@{checkpoints[1]}'], task_ids=(0,), episodes=1,
            horizon=17, changes={'execution_mode': 'sync'})

    (tmp_path / 'thesis.txt').write_text('of somebody else')
    with pytest.raises(KeyboardInterrupt):
        go()
    oft, cogact = (['dense', 'random_tokens:count=5'],
                   ['dense', 'random_tokens:count=5', 'efficientvla_cache',
                    f'random_tokens:count=6@{checkpoints[1]}'])
    assert measured == [oft]
    assert {path.name for path in (tmp_path / bench.UNFINISHED).iterdir()} == {'oft', 'cogact'}
    interrupted = False
    document = go()
    assert measured == [oft, cogact]
    assert episodes == [(0, 0, tuple(oft)), (0, 0, tuple(cogact))]
    assert {path.name for path in tmp_path.iterdir()} == {
        'methods.json', 'methods.md', 'methods.png', 'thesis.txt', LIST}

    rows = json.loads((tmp_path / 'methods.json').read_text())
    assert Counter(row['model'] for row in rows) == {
        'oft': 2, 'cogact': 4, OFT.name: 3, COGACT.name: 4}
    assert [model['refused'].keys() for model in document['models']] == [
        {'efficientvla_cache'}, set()]
    found = {(row['model'], row['method']): row for row in rows if row['latency_ms']}
    assert found['oft', 'dense']['frames'] == 3
    assert found['cogact', 'dense']['frames'] == 2
    for row in found.values():
        assert row['episodes'] == 1
    for model in ('oft', 'cogact'):
        assert found[model, 'dense']['tokens'] == 32
        assert found[model, 'dense']['action_change_max'] == 0
        assert found[model, 'random_tokens:count=5']['tokens'] == 5
        assert found[model, 'random_tokens:count=5']['overhead_ms'] > 0
    cached = found['cogact', 'efficientvla_cache']
    assert cached['flops'] < found['cogact', 'dense']['flops']
    assert cached['overhead_ms'] > 0


def test_constants_are_chosen_on_development_layouts_and_reported_on_others(
        checkpoints, made_up, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, '_measure_costs', lambda plan, *_: {
        contender.label: costs() for contender in plan.contenders})

    def go(out, **options):
        return bench.bench_methods(
            tmp_path / out, Console(width=100), [str(checkpoints[0])], task_ids=(0, 1),
            episodes=3, changes={'execution_mode': 'sync'}, **options)

    with pytest.raises(ValueError, match='sweep on --split development'):
        go('sweep', sweep=True, split='test')
    assert not (tmp_path / 'sweep').exists()
    with pytest.raises(ValueError, match='choose one of development, test'):
        go('sweep', split='held-out')
    development, test = (
        go(split, methods=['random_tokens:count=5'], split=split)
        for split in ('development', 'test'))
    assert {seed // 10_000 for _, seed in made_up} == {100, 201}  # headline has 200 for itself
    digests = {document['models'][0]['layouts_sha256'] for document in (development, test)}
    assert len(digests) == 2
    _, row = test['models'][0]['rows']
    assert row['successes_by_task'].keys() == row['episodes_by_task'].keys() == {'0', '1'}
    assert row['against_dense']['verdict'] == 'undecided'
    assert row['against_dense']['p_holm'] == row['against_dense']['p_value']
    assert 'test layouts' in (tmp_path / 'test' / 'methods.md').read_text()


def test_other_work_on_the_machine_is_not_charged_to_a_method():
    def inferences(device, threads):
        parameters = SimpleNamespace(device=device)
        return clock_of(SimpleNamespace(parameters=parameters, threads=threads))

    assert inferences('cpu', 1) == 'processor'
    assert inferences('cpu', 2) == inferences('cuda', 1) == 'wall'
    assert load_of([{'load': 1.0}, {'load': 2.0}]) == {
        'mean': 1.5, 'highest': 2.0, 'cores': os.cpu_count()}


def test_checkpoints_of_one_name_are_called_by_their_directories_too():
    runs = [Path('runs/a/checkpoint'), Path('runs/b/checkpoint')]
    assert bench._names(runs) == ['a-checkpoint', 'b-checkpoint']
    assert bench._names([runs[0], Path('small')]) == ['checkpoint', 'small']
    with pytest.raises(ValueError, match='name each once'):
        bench._names(runs[:1] * 2)


def test_the_report_says_with_which_command_it_was_made(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(
        bench, 'bench_methods', lambda out, console, **options: given.update(options, out=out))
    monkeypatch.chdir(tmp_path)
    arguments = ['bench', 'methods', '--checkpoint', str(tmp_path / 'a b'), '--checkpoint', 'c',
                 '--also', f'deer@{tmp_path}/deer', f'--config={tmp_path}']
    monkeypatch.setattr('sys.argv', ['/usr/bin/vla', *arguments])
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert given['out'].parts == ('out', 'methods')
    assert given['checkpoints'] == [str(tmp_path / 'a b'), 'c']
    assert given['command'] == (
        "vla bench methods --checkpoint './a b' --checkpoint c --also deer@./deer --config=.")
