"""VLA-Cache: what stands still is not computed again, and what it is replaced by is right."""

import pytest
import torch
from tiny_model import (
    CASES,
    CONFIG,
    inputs_of,
    load_model,
    prepared,
    run_step,
    step_of,
    torchs_flops,
)

from vla_policy_node.acceleration.row_recorder import RowRecorder
from vla_policy_node.acceleration.vla_cache import damp, reuse_rates
from vla_policy_node.models.flops import count_flops

MODEL = load_model()
INPUTS = [inputs_of(case) for case in CASES[:2]]
EAGER = {'relevant': 4, 'static': 12}


def test_of_an_identical_frame_the_answer_is_the_same_and_less_is_computed():
    method, rows = prepared('vla_cache', **EAGER), RowRecorder()
    first, _ = run_step(MODEL, method, INPUTS[0])
    method.begin_step(step_of(INPUTS[0]))
    second = []
    counted = torchs_flops(lambda: second.append(MODEL(*INPUTS[0], methods=[method, rows])))
    torch.testing.assert_close(second[0], first, rtol=0, atol=2e-5)
    own = sum(count_flops(CONFIG, rows.layer_rows).values())
    assert own + method.report().flops == counted
    reused = int((~method.report().kept).sum())
    assert reused > 0
    full = rows.layer_rows[0]
    assert full.new == full.seen
    for layer in rows.layer_rows[1:]:
        assert layer.new == full.new - reused
        assert layer.seen == full.seen


def test_of_another_state_reuse_is_an_approximation():
    method = prepared('vla_cache', **EAGER)
    run_step(MODEL, method, INPUTS[0])
    changed = INPUTS[0][0], INPUTS[0][1] + 0.5, INPUTS[0][2]
    reused, _ = run_step(MODEL, method, changed)
    exact = MODEL(*changed)
    assert 1e-6 < (reused - exact).abs().max() < (MODEL(*INPUTS[0]) - exact).abs().max() + 1


def test_another_picture_reuses_nothing():
    method = prepared('vla_cache', similarity=0.99999, **EAGER)
    run_step(MODEL, method, INPUTS[0])
    second, _ = run_step(MODEL, method, INPUTS[1])
    assert torch.equal(second, MODEL(*INPUTS[1]))
    assert method.report().kept.all()


def test_what_the_prompt_looks_at_is_computed_again():
    method = prepared('vla_cache', static=16, relevant=16)
    run_step(MODEL, method, INPUTS[0])
    run_step(MODEL, method, INPUTS[0])
    assert method.report().kept.all()
    method = prepared('vla_cache', static=16, relevant=0)
    run_step(MODEL, method, INPUTS[0])
    relevant = method._relevance
    run_step(MODEL, method, INPUTS[0])
    assert relevant.shape == (32,) and relevant.sum() > 0
    assert not method.report().kept.all()


def test_low_entropy_reuses_much_and_rises_are_damped():
    rates = reuse_rates({0: 2.0, 1: 1.0, 2: 3.0, 3: 1.0})
    assert rates == {0: 0.5, 1: 1.0, 2: 0.0, 3: 1.0}
    assert damp(rates, 1.0) == rates
    damped = damp(rates, 0.55)
    assert damped[1] == pytest.approx(0.775)
    assert all(damped[index] <= rates[index] + 1e-12 for index in rates)
    assert reuse_rates({}) == {}
