"""A call may set threads or environment for itself; after it the process is as it was."""

import ast
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_up_episodes import tiny_checkpoint
from rich.console import Console

import vla_policy_node
from vla_policy_node.acceleration import Method
from vla_policy_node.bench import methods_published, policy_run
from vla_policy_node.common.scoped import environment, torch_threads
from vla_policy_node.evaluation import run_plan as plan_runs
from vla_policy_node.policy.interface import CAMERAS, InferenceRequest, Observation
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.system.processes import private_domain
from vla_policy_node.training import demonstration_set, stage_run

PACKAGE = Path(vla_policy_node.__file__).parent
# What sets something for the whole process or a whole thread.
SETTERS = {
    'set_num_threads', 'set_num_interop_threads', 'setNumThreads', 'set_default_dtype',
    'set_float32_matmul_precision', 'set_grad_enabled', 'use_deterministic_algorithms',
    'allow_fp16_bf16_reduction_math_sdp', 'seterr', 'chdir', 'umask', 'setlocale', 'putenv',
    'setrecursionlimit', 'rcParams', 'filterwarnings', 'simplefilter',
}
# Where they may be: put back by the same function, or in a process that the function begins.
PUT_BACK = {
    ('common/scoped.py', 'torch_threads'), ('common/scoped.py', '_leave'),
    ('training/trainer.py', '_attention'), ('outputs/files.py', 'allow_umask'),
    ('lerobot/reader.py', 'decode_picture'),
}
OWN_PROCESS = {('evaluation/worker.py', 'start_worker'), ('training/decoded.py', '_begin')}


def in_a_new_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def of_this_and_of_a_new_thread():
    return torch.get_num_threads(), in_a_new_thread(torch.get_num_threads)


@pytest.fixture
def three():
    """A number of threads that nobody here chooses."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


class Seen(Method):
    """Notes with how many threads it is run."""

    name = 'seen'

    def __init__(self):
        self.threads = set()

    def begin_step(self, step):
        self.threads.add(torch.get_num_threads())

    def report(self):
        return None


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp('small'))


def request():
    image = np.zeros((64, 64, 3), np.uint8)
    return InferenceRequest(
        Observation(dict.fromkeys(CAMERAS, image), np.zeros(8), 'pick up the milk'))


def test_a_policy_computes_with_its_threads_and_leaves_those_of_others(small, three):
    loading = set()

    def load_model(*arguments, **options):
        from vla_policy_node.runtime.loading import load_model

        loading.add(torch.get_num_threads())
        return load_model(*arguments, **options)

    policy = LocalPolicy.load(small, methods=(), threads=2, load_model=load_model)
    assert of_this_and_of_a_new_thread() == (3, 3)
    policy._methods = (seen := Seen(),)
    policy.infer(request())
    in_a_new_thread(lambda: policy.infer(request()))
    policy.warm_up('pick up the milk')
    assert loading == seen.threads == {2}
    assert of_this_and_of_a_new_thread() == (3, 3)
    beside = policy.plain()
    beside._methods = (seen := Seen(),)
    beside.infer(request())
    assert seen.threads == {2}


def test_a_policy_without_a_number_uses_what_torch_has(small, three):
    policy = LocalPolicy.load(small, methods=())
    policy._methods = (seen := Seen(),)
    policy.infer(request())
    assert seen.threads == {3}
    assert of_this_and_of_a_new_thread() == (3, 3)


def test_threads_are_put_back_after_an_error(three):
    with pytest.raises(KeyError), torch_threads(1):
        raise KeyError
    assert of_this_and_of_a_new_thread() == (3, 3)


def test_two_threads_that_compute_at_once_leave_what_was_before_them(three):
    """The second one computes for the first time while the first one's number is in force."""
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))
    found = {}

    def first():
        with torch_threads(1):
            first_is_in.set()
            second_is_in.wait(10)
            found['first'] = torch.get_num_threads()
        first_is_out.set()

    def second():
        first_is_in.wait(10)
        with torch_threads(2):
            second_is_in.set()
            first_is_out.wait(10)
            found['second'] = torch.get_num_threads()
        found['second after'] = torch.get_num_threads()

    threads = [threading.Thread(target=function) for function in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {'first': 1, 'second': 2, 'second after': 3}
    assert of_this_and_of_a_new_thread() == (3, 3)


def test_an_evaluation_leaves_the_threads(three, monkeypatch):
    seen = []

    class Worker:
        def __init__(self, plan):
            pass

        def run(self, *unit):
            seen.append(torch.get_num_threads())
            return []

        def close(self):
            seen.append('closed')

    monkeypatch.setattr(plan_runs, 'Worker', Worker)
    plan = SimpleNamespace(threads=2)
    assert list(plan_runs._run_here(plan, [(0, 0, ('dense',))])) == [[]]
    assert seen == [2, 'closed']
    assert of_this_and_of_a_new_thread() == (3, 3)


def test_a_bench_leaves_the_threads(three, monkeypatch):
    seen = []

    def measure(*_):
        seen.append(torch.get_num_threads())
        return {'notes': []}, []

    monkeypatch.setattr(policy_run, '_measure', measure)
    policy_run.run(policy_run.Options(threads=2), None, None, Console())
    assert seen == [2]
    assert of_this_and_of_a_new_thread() == (3, 3)


def test_training_in_this_process_leaves_threads_and_random_numbers(three, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(stage_run, '_train_here', lambda *_: seen.append(
        (torch.get_num_threads(), torch.initial_seed())))
    monkeypatch.setattr(stage_run.os, 'sched_getaffinity', lambda _: range(2))
    config = stage_run.TrainingConfig(stage='clone', steps=1, seed=41)
    monkeypatch.setattr(stage_run, '_check_inputs', lambda *_: None)
    start = tiny_checkpoint(tmp_path / 'start')
    before = torch.get_rng_state()
    stage_run.train(stage_run.Run(config, start, None, None, tmp_path / 'out'))
    assert seen == [(2, 41)]
    assert torch.equal(torch.get_rng_state(), before)
    assert of_this_and_of_a_new_thread() == (3, 3)


def test_what_is_counted_at_full_size_leaves_the_random_numbers():
    before = torch.get_rng_state()
    methods_published.MODELS[0].stand_in()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_environment_is_put_back(monkeypatch):
    monkeypatch.setenv('VLA_TEST_SET', 'old')
    monkeypatch.delenv('VLA_TEST_UNSET', raising=False)
    with pytest.raises(KeyError), environment(VLA_TEST_SET='new', VLA_TEST_UNSET='new'):
        assert os.environ['VLA_TEST_SET'] == os.environ['VLA_TEST_UNSET'] == 'new'
        raise KeyError
    assert os.environ['VLA_TEST_SET'] == 'old'
    assert 'VLA_TEST_UNSET' not in os.environ
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    with environment(**demonstration_set._ONE_THREAD):
        assert os.environ['OMP_NUM_THREADS'] == '1'
    assert os.environ['OMP_NUM_THREADS'] == '3'


def test_a_domain_of_ones_own_is_left_again(monkeypatch):
    for name in ('ROS_DOMAIN_ID', 'ROS_AUTOMATIC_DISCOVERY_RANGE'):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    with private_domain():
        assert 1 <= int(os.environ['ROS_DOMAIN_ID']) <= 101
        assert os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] == 'LOCALHOST'
    assert os.environ == before
    monkeypatch.setenv('ROS_DOMAIN_ID', '7')
    with private_domain():
        assert os.environ['ROS_DOMAIN_ID'] == '7'


class Settings(ast.NodeVisitor):
    """Finds settings of the process, as (name, function in which they stand)."""

    def __init__(self):
        self.found, self._function = set(), ''

    def visit_FunctionDef(self, node):
        before, self._function = self._function, node.name
        self.generic_visit(node)
        self._function = before

    def visit_Attribute(self, node):
        if node.attr in SETTERS:
            self.found.add((node.attr, self._function))
        self.generic_visit(node)


def test_nothing_else_in_the_package_sets_a_process_wide_number():
    found = set()
    for path in PACKAGE.rglob('*.py'):
        visitor = Settings()
        visitor.visit(ast.parse(path.read_text(encoding='utf-8')))
        found |= {(str(path.relative_to(PACKAGE)), function) for _, function in visitor.found}
    assert found == PUT_BACK | OWN_PROCESS
