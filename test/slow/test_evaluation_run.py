"""`vla eval`: all methods on the same episodes, and an interrupted run goes on where it was."""

# ruff: noqa: F401, F811 - fixtures are imported by name

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_up_episodes import Scene, made_up, tiny_checkpoint
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from vla_policy_node import cli
from vla_policy_node.evaluation import worker
from vla_policy_node.evaluation.contenders import Contender, parse_contender
from vla_policy_node.evaluation.evaluate import evaluate, make_plan
from vla_policy_node.evaluation.plan import Plan
from vla_policy_node.evaluation.results import Results, side_file
from vla_policy_node.evaluation.run_plan import missing_units
from vla_policy_node.evaluation.summary import summarise
from vla_policy_node.world.layouts import HELD_OUT_SEED

CONSOLE = Console(width=100)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp('tiny') / 'tiny')


def plan_of(checkpoint, *methods, **options) -> Plan:
    options = {'task_ids': (0, 1), 'episodes': 3, 'changes': {'execution_mode': 'sync'}, **options}
    return make_plan(methods, arguments={'checkpoint': str(checkpoint)}, **options)


# --- what the command line says ---


def test_methods_and_their_settings():
    assert parse_contender('dense') == Contender('dense')
    both = parse_contender('lightvla:multiplicity_bias=true,extra_random=3+random_tokens:count=9')
    assert both.methods == ('lightvla', 'random_tokens')
    assert both.settings == {
        'lightvla': {'multiplicity_bias': True, 'extra_random': 3}, 'random_tokens': {'count': 9}}


def test_a_method_on_another_checkpoint(checkpoint):
    contender = parse_contender(f'lightvla@{checkpoint}')
    assert (contender.methods, contender.checkpoint) == (('lightvla',), checkpoint)
    plan, other = plan_of(checkpoint), plan_of(checkpoint, f'dense@{checkpoint}')
    assert plan.identity() != other.identity()
    with pytest.raises(ValueError, match='no such directory'):
        parse_contender('dense@nowhere')


@pytest.mark.parametrize(('text', 'message'), [
    ('magic', "no acceleration method 'magic'"),
    ('lightvla:multiplicity', 'write it as'),
    ('lightvla:colour=1', "no setting 'colour'"),
    ('lightvla:multiplicity_bias=7', 'must be a bool'),
])
def test_what_cannot_be_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_contender(text)


@pytest.mark.parametrize(('options', 'message'), [
    ({'task_ids': (8, 12)}, 'has the tasks 0 to 9'),
    ({'layout': 'upside-down'}, 'choose one of standard, shuffled'),
    ({'control': 'deaf'}, 'choose one of none, gray'),
    ({'layout': 'standard', 'episodes': 11}, 'has 1 to 10 held-out episodes'),
    ({'suite': 'libero_kitchen'}, 'no suite'),
    ({'state_only': Path('nowhere.safetensors')}, 'no blind baseline'),
])
def test_a_plan_that_cannot_be_is_refused(checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        plan_of(checkpoint, **options)


def test_a_method_twice_is_refused(checkpoint):
    with pytest.raises(ValueError, match='only once'):
        plan_of(checkpoint, 'dense', 'dense')


def test_defaults(checkpoint):
    plan = plan_of(checkpoint, task_ids=(), episodes=0)
    assert (len(plan.task_ids), plan.episodes, plan.contenders) == (10, 20, (Contender('dense'),))
    assert plan_of(checkpoint, layout='standard', episodes=0).episodes == 10


def test_layout_seeds_are_held_out_and_never_meet(checkpoint):
    plan = plan_of(checkpoint, task_ids=(), episodes=100, seed=2)
    seeds = [plan.layout_seed(task, episode) for task, episode in plan.units]
    assert seeds[0] == HELD_OUT_SEED + 20_000
    assert plan.layout_seed(3, 4) == HELD_OUT_SEED + 20_304
    assert len(set(seeds)) == 1000
    last = plan_of(checkpoint, task_ids=(), episodes=100, seed=99)
    first = plan_of(checkpoint, task_ids=(), episodes=100, split='test')
    assert last.layout_seed(9, 99) < first.layout_seed(0, 0)
    with pytest.raises(ValueError, match='seed is 100; take 0 to 99'):
        plan_of(checkpoint, seed=100)


# --- whose statistics ---

SUITES = ('libero_spatial', 'libero_object', 'libero_goal', 'libero_10')


def knowing(checkpoint, directory, *names):
    """A copy of the checkpoint that knows data sets of these names."""
    shutil.copytree(checkpoint, directory)
    path = directory / 'dataset_statistics.json'
    (entry,) = json.loads(path.read_text()).values()
    path.write_text(json.dumps(dict.fromkeys(names, entry)))
    return directory


def test_of_four_data_sets_in_one_checkpoint_the_suite_chooses(checkpoint, tmp_path):
    four = knowing(checkpoint, tmp_path / 'four', *(f'{name}_no_noops' for name in SUITES))
    for suite in SUITES[:3]:
        assert plan_of(four, suite=suite).parameters.statistics_key == f'{suite}_no_noops'
    both = knowing(checkpoint, tmp_path / 'both', 'libero_goal_no_noops', 'libero_goal')
    assert plan_of(both, suite='libero_goal').parameters.statistics_key == 'libero_goal'
    asked = plan_of(four, changes={'statistics_key': 'libero_10_no_noops'})
    assert asked.parameters.statistics_key == 'libero_10_no_noops'


def test_one_data_set_serves_every_suite(checkpoint):
    assert plan_of(checkpoint, suite='libero_goal').parameters.statistics_key == ''


def test_without_a_data_set_of_the_suite_one_sentence_lists_those_that_are_there(
        checkpoint, tmp_path):
    other = knowing(checkpoint, tmp_path / 'other', 'bridge_orig', 'fractal')
    with pytest.raises(ValueError, match=r"none of 'libero_object'.*--statistics-key[)]: bridge"):
        plan_of(other)


def test_a_method_on_another_checkpoint_has_the_data_set_of_that_one(checkpoint, tmp_path):
    four = knowing(checkpoint, tmp_path / 'four', *SUITES)
    first, second, third = plan_of(
        four, 'dense', f'dense@{checkpoint}', f'lightvla@{four}').contenders
    assert (first.statistics_key, second.statistics_key, third.statistics_key) == (
        None, '', 'libero_object')
    assert second.load(plan_of(four).parameters, 1).description.statistics_key != 'libero_object'


# --- side file ---

ROW = {'method': 'dense', 'task_id': 0, 'episode': 0, 'success': True}


def test_finished_episodes_are_found_again_and_half_a_line_is_not(tmp_path):
    path = tmp_path / 'eval.json'
    Results(path, {'seed': 1}).add([ROW, {**ROW, 'episode': 1}])
    with side_file(path).open('a') as file:
        file.write('{"method": "dense", "ta')
    results = Results(path, {'seed': 1})
    keys = {('dense', 0, episode) for episode in range(3)}
    assert [row['episode'] for row in results.rows(keys)] == [0, 1]
    results.add([{**ROW, 'episode': 2}])
    assert len(Results(path, {'seed': 1}).rows(keys)) == 3
    assert results.rows({('dense', 0, 1)}) == [{**ROW, 'episode': 1}]


def test_episodes_of_another_evaluation_are_refused(tmp_path):
    Results(tmp_path / 'eval.json', {'seed': 1, 'suite': 'a'}).add([ROW])
    with pytest.raises(ValueError, match='with other seed; delete it'):
        Results(tmp_path / 'eval.json', {'seed': 2, 'suite': 'a'})


def test_only_the_methods_that_lack_an_episode_run_it(checkpoint):
    plan = plan_of(checkpoint, 'dense', 'lightvla', task_ids=(1,), episodes=2)
    results = Results(None, {})
    results.add([{**ROW, 'task_id': 1}])
    assert missing_units(plan, results) == [(1, 0, ('lightvla',)), (1, 1, ('dense', 'lightvla'))]


def test_settings_belong_to_the_evaluation_but_methods_do_not(checkpoint):
    plan = plan_of(checkpoint)
    same = plan_of(checkpoint, 'lightvla', task_ids=(3,), episodes=1)
    assert plan.identity() == same.identity() == json.loads(json.dumps(plan.identity()))
    for change in ({'control': 'gray'}, {'execute': 2}, {'seed': 1}, {'horizon': 9}):
        assert dataclasses.replace(plan, **change).identity() != plan.identity()


# --- whole evaluations, with stand-ins for world and episodes ---


def test_results_of_another_seed_or_control_are_not_overwritten(checkpoint, made_up, tmp_path):
    file = tmp_path / 'eval.json'
    plan = plan_of(checkpoint, 'dense')
    evaluate(plan, 1, CONSOLE, file)
    before = file.read_bytes()
    for name, value, was in (('seed', 1, 0), ('control', 'gray', 'none'), ('split', 'test',
                             'development')):
        with pytest.raises(ValueError, match=f'results of {name} {was}, not {value}; write to'):
            evaluate(dataclasses.replace(plan, **{name: value}), 1, CONSOLE, file)
    assert file.read_bytes() == before
    evaluate(plan, 1, CONSOLE, file)
    assert file.read_bytes() == before


def test_the_document(checkpoint, made_up, tmp_path):
    file, plots = tmp_path / 'eval.json', tmp_path / 'plots'
    plan = plan_of(checkpoint, 'dense', 'lightvla')
    evaluate(plan, 1, CONSOLE, file, plots)
    document = json.loads(file.read_text())
    # Seeds 1000000.. and 1000100..: each remainder by three once per task.
    assert (document['success_rate'], document['episodes']) == (pytest.approx(4 / 6), 6)
    assert document['checkpoint']['name'] == 'tiny'
    assert not document['checkpoint']['trained']
    assert len(document['checkpoint']['sha256']) == 64
    assert [(r['method'], r['task_id'], r['successes']) for r in document['rows']] == [
        ('dense', 0, 2), ('dense', 1, 2), ('lightvla', 0, 1), ('lightvla', 1, 1)]
    row = document['rows'][2]
    assert (row['tokens'], row['flops'], row['tokens_total']) == (2, 1000, 8)
    assert row['tokens_by_phase'] == {'reach': 2, 'grasp': 2, 'carry': None, 'place': None}
    assert row['latency_ms']['total'] == {'p50': 2.5, 'p95': 2.5}
    assert row['failures'] == {'dropped': 2}
    assert (row['wilson_low'], row['wilson_high']) == pytest.approx((0.0615, 0.7923), abs=1e-4)
    assert document['paired'] == [{
        'first': 'dense', 'second': 'lightvla', 'episodes': 6, 'both': 2, 'only_first': 2,
        'only_second': 0, 'neither': 2, 'difference': pytest.approx(-1 / 3),
        'interval': pytest.approx([-0.6463, 0.1517], abs=1e-3),
        'interval_of_tasks': pytest.approx([-1 / 3, -1 / 3]), 'verdict': 'undecided',
        'p_value': 0.5, 'p_holm': 0.5}]
    assert document['machine']['workers'] == 1
    assert document['machine']['code'].startswith('vla_policy_node')
    assert not side_file(file).exists()
    for name in ('success.png', 'tokens.png'):
        assert np.asarray(Image.open(plots / name)).std() > 5
    # No path of this machine.
    assert str(checkpoint.parent) not in file.read_text()


def test_methods_take_turns_on_the_same_layouts_in_worlds_that_stay_open(checkpoint, made_up):
    Scene.instances = 0
    plan = plan_of(checkpoint, 'dense', 'lightvla', episodes=2)
    evaluate(plan, 1, CONSOLE)
    seeds = [plan.layout_seed(*unit) for unit in plan.units]
    assert made_up == [(label, seed) for seed in seeds for label in ('dense', 'lightvla')]
    assert Scene.instances == 2


def test_an_interrupted_run_goes_on_where_it_was(checkpoint, made_up, tmp_path, monkeypatch):
    file = tmp_path / 'eval.json'
    plan = plan_of(checkpoint, 'dense', 'lightvla')
    whole = evaluate(plan, 1, CONSOLE)
    made_up.clear()
    run_episode = worker.run_episode

    def interrupted(*arguments, **options):
        if len(made_up) == 5:
            raise KeyboardInterrupt
        return run_episode(*arguments, **options)

    monkeypatch.setattr(worker, 'run_episode', interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(plan, 1, CONSOLE, file)
    assert not file.exists()
    assert len(side_file(file).read_text().splitlines()) == 1 + 4
    monkeypatch.setattr(worker, 'run_episode', run_episode)
    made_up.clear()
    assert evaluate(plan, 1, CONSOLE, file) == whole
    assert len(made_up) == 8
    # Finished, it starts anew: a result must be possible to reproduce.
    made_up.clear()
    evaluate(plan, 1, CONSOLE, file)
    assert len(made_up) == 12


def test_a_gray_control_and_a_state_only_baseline_see_gray(
        checkpoint, monkeypatch, tmp_path, made_up):
    shown = []
    run_episode = worker.run_episode
    monkeypatch.setattr(worker, 'run_episode', lambda world, policy, *arguments, **options: (
        shown.append((policy.label, options['images'])),
        run_episode(world, policy, *arguments, **options))[1])
    (tmp_path / 'blind').touch()
    plan = plan_of(checkpoint, 'dense', state_only=tmp_path / 'blind', task_ids=(0,), episodes=1)
    evaluate(plan, 1, CONSOLE)
    evaluate(dataclasses.replace(plan, control='gray'), 1, CONSOLE)
    looks = [(label, images is None) for label, images in shown]
    assert looks == [('dense', True), ('blind', False), ('dense', False), ('blind', False)]
    images = shown[1][1](None)
    assert {image.shape for image in images.values()} == {(224, 224, 3)}
    assert all((image == 128).all() for image in images.values())


def test_nothing_ran(checkpoint):
    document = summarise(plan_of(checkpoint), [], 1)
    assert document['success_rate'] is None
    json.dumps(document, allow_nan=False)


# --- the real thing, small ---


def test_two_processes_find_what_one_finds(checkpoint, tmp_path):
    options = {'task_ids': (0,), 'episodes': 2, 'horizon': 9}
    plan = plan_of(checkpoint, 'dense', 'lightvla', trace=tmp_path / 'trace', **options)
    plan = dataclasses.replace(plan, image_size=(56, 56))
    apart = evaluate(plan, 2, CONSOLE)
    with np.load(tmp_path / 'trace' / 'task00-episode01-lightvla.npz') as trace:
        assert trace['kept'].shape == (2, 2, 4, 4)
        assert trace['on_parts'].shape == (2, 3, 2, 4, 4)
        assert trace['actions'].shape == (2, 8, 7)
        assert trace['step'].tolist() == [0, 8]
        assert str(trace['phases'][trace['phase'][0]]) == 'reach'
    here = evaluate(plan, 1, CONSOLE)
    for document in (apart, here):
        document.pop('machine')
        for figures in (*document['rows'], *document['totals']):
            assert list(figures.pop('latency_ms')) == [
                'preprocess', 'upload', 'vision', 'select', 'language_model', 'head', 'total']
    assert apart == here
    dense, pruned = apart['totals']
    assert dense['tokens'] == dense['tokens_total'] == 32
    assert pruned['tokens'] < 32
    # Choosing among so few tokens costs more than it saves, and is counted.
    assert pruned['flops'] > dense['flops'] > 0
    assert dense['grounding']['object']['kept'] == dense['grounding']['object']['image'] > 0


def test_the_command_says_in_one_sentence_what_is_wrong(checkpoint):
    result = CliRunner().invoke(cli.app, ['eval', '--checkpoint', str(checkpoint), '--tasks', 'x'])
    assert result.exit_code == 2
    assert 'write numbers and ranges' in result.output
    result = CliRunner().invoke(cli.app, ['eval', '--checkpoint', '/nowhere'])
    assert result.exit_code == 2
    assert 'Traceback' not in result.output
