"""Every command that writes files: it refuses what is in its way before it does anything else."""

import json
from pathlib import Path

import pytest
from foreign_work import plant, snapshot
from node_bench import create_tiny_checkpoint
from replay_bag import make_bag
from rich.console import Console
from typer.testing import CliRunner

from vla_policy_node.cli import app
from vla_policy_node.commands.train import stage_config
from vla_policy_node.outputs.folder import OutputError, claim, seal
from vla_policy_node.outputs.listing import LIST
from vla_policy_node.replay.evaluate import evaluate_bag
from vla_policy_node.replay.many import replay_bags
from vla_policy_node.replay.settings import ReplaySettings

QUIET = Console(quiet=True)


def run_demo(out):
    from vla_policy_node.demo.run import run_demo

    run_demo(out, [None, None], 1, 'auto', {}, QUIET)


def run_evaluation(out):
    from vla_policy_node.evaluation.evaluate import evaluate

    evaluate(None, 1, QUIET, out / 'eval.json', out / 'plots')


def run_training(out):
    from vla_policy_node.runtime.small import create_small_checkpoint
    from vla_policy_node.training.stage_run import Run, train

    start = create_small_checkpoint(out.with_name('start'))
    train(Run(stage_config('clone', None, ()), start, None, None, out))


def run_bench_node(out):
    from vla_policy_node.bench.live.node import run

    run(1.0, {}, out, QUIET)


def run_bench_policy(out):
    from vla_policy_node.bench.policy_run import Options, run

    run(Options(), out / 'policy.json', out / 'policy.md', QUIET)


def run_bench_selection(out):
    from vla_policy_node.bench.selection import Question, answer

    answer(Question(out, out, None, out, 1, (), 1), QUIET)


def run_train_blind(out):
    done = CliRunner().invoke(
        app, ['train-blind', '--demos', str(out), '--out', str(out / 'blind.safetensors')])
    assert done.exit_code == 2
    raise OutputError(done.stderr)


@pytest.mark.parametrize(('run', 'name'), [
    (run_demo, 'demo.json'), (run_demo, 'nodes.log'), (run_demo, 'overlay.mp4'),
    (run_demo, 'filmstrip_1.png'), (run_demo, 'bag/metadata.yaml'), (run_demo, 'bag'),
    (run_evaluation, 'eval.json'), (run_evaluation, 'plots/success.png'),
    (run_training, 'state.pt'), (run_training, 'metrics.jsonl'), (run_training, 'curves.png'),
    (run_training, 'grounding_heads.safetensors'), (run_training, 'checkpoint/config.json'),
    (run_bench_node, 'bench_node.json'), (run_bench_policy, 'policy.md'),
    (run_bench_selection, 'selection.md'), (run_train_blind, 'blind.safetensors'),
])
def test_a_file_in_the_way_that_no_run_wrote_is_named_and_kept(tmp_path, run, name):
    out = tmp_path / 'out'
    before, elsewhere = plant(out, tmp_path / 'elsewhere')
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text('precious')
    with pytest.raises(OutputError, match=Path(name).name):
        run(out)
    after = snapshot(out)
    assert after.pop(name) == ('file', b'precious')
    # The list of a folder in which other names were still free may stay; nothing else is new.
    added = {Path(n).name for n in after.keys() - before.keys()} - {Path(name).parent.name}
    assert added <= {LIST}
    assert before.items() <= after.items()
    assert snapshot(tmp_path / 'elsewhere') == elsewhere


@pytest.fixture(scope='module')
def settings(tmp_path_factory):
    checkpoint = str(create_tiny_checkpoint(tmp_path_factory.mktemp('tiny')))
    return ReplaySettings('dense', checkpoint=checkpoint, video=False)


def test_a_replay_replaces_its_own_report_and_no_folder_with_other_work(settings, tmp_path):
    bag, out = make_bag(tmp_path / 'bag', seconds=0.6), tmp_path / 'out'
    evaluate_bag(bag, settings, out)
    (out / 'report.json').chmod(0o600)
    evaluate_bag(bag, settings, out)
    assert json.loads((out / LIST).read_text())['made_by'] == 'vla_policy_node'
    before = plant(out, tmp_path / 'elsewhere')
    with pytest.raises(OutputError, match='holds other files'):
        evaluate_bag(bag, settings, out)
    with pytest.raises(OutputError, match='holds other files'):
        replay_bags([bag, bag], settings, out, 1, '', QUIET)
    assert before == (snapshot(out), snapshot(tmp_path / 'elsewhere'))


def test_the_reports_of_another_plan_go_and_what_somebody_put_among_them_stays(
        settings, tmp_path):
    bags = [make_bag(tmp_path / name, seconds=0.6) for name in ('one', 'two', 'three')]
    out = tmp_path / 'out'
    replay_bags(bags[:2], settings, out, 1, '', QUIET)
    replay_bags(bags[1:], settings, out, 1, '', QUIET)
    assert sorted(path.name for path in out.iterdir()) == [
        LIST, 'latency.json', 'plan.json', 'report.html', 'report.json', 'three', 'two']
    (out / 'two' / 'notes.txt').write_text('mine')
    with pytest.raises(OutputError, match=r'two/notes\.txt'):
        replay_bags(bags[:2], settings, out, 1, '', QUIET)
    assert (out / 'two' / 'notes.txt').read_text() == 'mine'
    assert (out / 'three' / 'report.html').is_file()


def test_the_bag_of_another_pace_goes_and_what_somebody_put_into_it_stays(tmp_path):
    from vla_policy_node.demo.run import COMMAND, DemoError, _bag_names, _make_way

    bag = tmp_path / 'bag'
    claim(tmp_path, ['demo.json', *_bag_names()], COMMAND)
    bag.mkdir()
    for name in _bag_names():
        (tmp_path / name).write_text('')
    (tmp_path / 'demo.json').write_text('{}')
    _make_way(bag)
    assert not bag.exists()
    bag.mkdir()
    (bag / 'notes.txt').write_text('mine')
    with pytest.raises(DemoError, match='holds what no demo wrote'):
        _make_way(bag)
    seal(tmp_path, COMMAND)
    assert (bag / 'notes.txt').read_text() == 'mine'
    assert (tmp_path / 'demo.json').exists()


def test_demonstrations_are_not_made_among_other_files(tmp_path):
    from vla_policy_node.training.demonstrations import write_document

    (tmp_path / 'dataset_statistics.json').write_text('{}')
    with pytest.raises(ValueError, match='holds other files, such as dataset_statistics'):
        write_document(tmp_path, {'format': 1})
    assert snapshot(tmp_path) == {'dataset_statistics.json': ('file', b'{}')}
