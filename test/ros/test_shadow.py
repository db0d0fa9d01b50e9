"""Shadow mode: the plain model beside the accelerated one, off the way of the commands."""

# ruff: noqa: F401, F811 - fixtures are imported by name

import threading
import time

import numpy as np
import pytest
from node_bench import checkpoint, make_bench
from ros_testing import ros
from scripted import ScriptedPolicy

from vla_policy_node.control.action_spec import ActionSpec
from vla_policy_node.loop.shadowed import ShadowedPolicy
from vla_policy_node.nodes.messages import SHADOW_ENTRY
from vla_policy_node.policy.interface import ActionChunk, InferenceRequest, Observation
from vla_policy_node.policy.local import LocalPolicy

SPEC = ActionSpec('base_link', 'axis_angle', 0.05, 0.5, 1.0, 0.0)
REQUEST = InferenceRequest(Observation({}, np.zeros(8), 'pick up the bowl'))


def chunk(x=0.0, gripper=1.0, ms=10.0):
    actions = np.zeros((8, 7))
    actions[:, 0], actions[:, 6] = x, gripper
    return ActionChunk(actions, (), {'head': ms}, 'scripted', 8, 32)


class Accelerated(ScriptedPolicy):
    """Answers at once with whatever its `chunk` is."""

    def answer(self, request):
        return self.chunk


class Plain(ScriptedPolicy):
    """Answers with a chunk once the gate is open."""

    def __init__(self, chunk):
        super().__init__()
        self.chunk, self.gate, self.threads = chunk, threading.Event(), []
        self.begun = threading.Semaphore(0)

    def answer(self, request):
        self.threads.append(threading.current_thread().name)
        self.begun.release()
        assert self.gate.wait(20.0)
        return self.chunk


def wait_for(condition):
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def make_shadow():
    made = []

    def make(answer, every=1):
        plain = Plain(answer)
        shadow = ShadowedPolicy(Accelerated(), plain, SPEC, every, 100)
        shadow.start()
        made.append((plain, shadow))
        return plain, shadow

    yield make
    for plain, shadow in made:
        plain.gate.set()
        shadow.stop()


def ask(shadow, answer):
    shadow.inside.chunk = answer
    assert shadow.infer(REQUEST) is answer


def test_the_difference_is_in_millimetres_and_the_saving_in_milliseconds(make_shadow):
    plain, shadow = make_shadow(chunk(x=0.1, ms=30.0))
    plain.gate.set()
    ask(shadow, chunk(x=0.0, gripper=0.0))
    wait_for(lambda: shadow.summary().compared == 1)
    found = shadow.summary()
    assert found.translation_mm == pytest.approx(5.0)
    assert found.saved_ms == pytest.approx(20.0)
    assert found.gripper_differs == 1
    assert found.text == 'pruning saved 20 ms, changed the action by 5.0 mm, 0.0 mrad'
    assert plain.threads == ['shadow']
    assert plain.requests == [REQUEST]


def test_every_nth_is_compared_and_a_busy_shadow_skips(make_shadow):
    plain, shadow = make_shadow(chunk(), every=3)
    for _ in range(7):  # the 1st, 4th and 7th are due
        ask(shadow, chunk())  # never waits: the gate is closed
    assert plain.begun.acquire(timeout=20.0)
    assert shadow.summary().skipped == 2
    plain.gate.set()
    wait_for(lambda: shadow.summary().compared == 1)


def test_a_shadow_that_fails_is_counted(make_shadow):
    plain, shadow = make_shadow('no chunk')
    plain.gate.set()
    ask(shadow, chunk())
    wait_for(lambda: shadow.summary().failed == 1)
    assert shadow.summary().compared == 0


def test_the_plain_policy_shares_the_weights_and_keeps_every_token(checkpoint):
    policy = LocalPolicy.load(checkpoint, methods=['lightvla'])
    plain = policy.plain()
    assert plain._model is policy._model
    image = np.random.default_rng(0).integers(0, 255, (56, 56, 3), np.uint8)
    request = InferenceRequest(Observation(
        {'third_person': image, 'wrist': image}, np.zeros(8), 'pick up the bowl'))
    fewer, all_of_them = policy.infer(request), plain.infer(request)
    # The rows that the action head reads stay those of the accelerated one: only tokens differ.
    rows = policy.description.action_rows
    dense = LocalPolicy.load(checkpoint, methods=(), action_rows=rows).infer(request)
    assert fewer.tokens_kept < all_of_them.tokens_kept == all_of_them.tokens_total
    np.testing.assert_array_equal(all_of_them.actions, dense.actions)


def test_diagnostics_say_what_pruning_saved_and_changed(make_bench):
    bench = make_bench(shadow_every=1).activate()
    bench.start()
    for _ in range(3):
        bench.infer()
        bench.advance()
    wait_for(lambda: bench.node._shadow.summary().compared)

    def shadow_entry():
        bench.set_clock(bench.now_ns + 1_000_000_000)
        return next((status for array in reversed(bench.robot.diagnostics)
                     for status in array.status
                     if status.name.endswith(SHADOW_ENTRY)
                     and status.message.startswith('pruning saved')), None)

    entry = bench.robot.wait(shadow_entry, 'the shadow in /diagnostics')
    figures = {value.key: value.value for value in entry.values}
    assert int(figures['compared']) >= 1
    assert float(figures['translation change max mm']) > 0.0
