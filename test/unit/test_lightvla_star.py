"""LightVLA*: learnt queries vote; they belong to the checkpoint they were trained with."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import (
    CASES,
    CONFIG,
    assemble,
    batch_of,
    hide_all_but,
    inputs_of,
    load_model,
    shared_model,
)
from torch.utils.flop_counter import FlopCounterMode

from vla_policy_node.acceleration.lightvla_star import FILE_NAME, LearnedQueries, LightVlaStar
from vla_policy_node.acceleration.lightvla_training import LightVlaStarTraining
from vla_policy_node.checkpoints.fingerprint import fingerprint
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.sequence import TokenSequence, lay_out
from vla_policy_node.policy.interface import CAMERAS, InferenceRequest, Observation
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.runtime.small import create_small_checkpoint

WIDTH = CONFIG.language_model.width


def make_queries(count=6, layer=0):
    torch.manual_seed(0)
    return LearnedQueries(WIDTH, count, layer)


def make_method(tmp_path, **sizes):
    make_queries(**sizes).save(tmp_path)
    method = LightVlaStar()
    method.prepare(tmp_path, CONFIG)
    return method


@pytest.fixture(params=range(4), ids='case{}'.format)
def case(request):
    return CASES[request.param]


@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 8), st.integers(0, 2**31))
def test_scores_are_those_of_the_formula(count, tokens, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(2, 1 + tokens + rows, 16, generator=generator, dtype=torch.float64)
    spans = lay_out({'bos': 1, 'visual': tokens, 'prompt': rows})
    sequence = TokenSequence(states, torch.arange(1 + tokens + rows).expand(2, -1), spans)
    queries = LearnedQueries(16, count).requires_grad_(False)

    def norm(x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    learnt = queries.queries.double()
    for visual, context, scores in zip(
        sequence.visual, sequence.context, queries(sequence), strict=True
    ):
        attention = torch.softmax(norm(learnt) @ norm(context).T / 4, dim=-1)
        query = norm(learnt + attention @ norm(context))
        torch.testing.assert_close(scores, query @ norm(visual).T / 4, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('layer', [0, 1, 2])
def test_dropping_tokens_equals_hiding_their_keys_from_there_on(tmp_path, case, layer):
    class Hide(LightVlaStar):
        def before_layer(self, index, sequence):
            changed = super().before_layer(index, sequence)
            if changed is sequence:
                return sequence
            return hide_all_but(sequence, self.report().kept)

    method, hiding = make_method(tmp_path, layer=layer), Hide()
    hiding.prepare(tmp_path, CONFIG)
    inputs = inputs_of(case)
    dropped = shared_model()(inputs, ForwardPass([method]))
    hidden = shared_model()(inputs, ForwardPass([hiding]))
    torch.testing.assert_close(dropped, hidden, rtol=0, atol=2e-5)
    assert (dropped - shared_model()(inputs)).abs().max() > 1e-3
    report = method.report()
    assert 1 <= report.kept.sum() <= 6
    assert report.scores.sum() == 6
    assert report.layer == layer


def test_kept_tokens_stay_in_order_at_their_positions(tmp_path, case):
    method, sequence = make_method(tmp_path), assemble(shared_model(), inputs_of(case))
    pruned = method.select_tokens(sequence)
    kept = torch.from_numpy(method.report().kept.nonzero()[0])
    assert torch.equal(pruned.visual_tokens, kept)
    assert torch.equal(pruned.visual, sequence.visual[:, kept])
    assert torch.equal(pruned.context, sequence.context)


def test_keeping_every_token_changes_no_bit(tmp_path, case):
    method = make_method(tmp_path, count=32)
    method.queries.forward = lambda sequence: torch.eye(32)[None]
    inputs = inputs_of(case)
    assert torch.equal(shared_model()(inputs, ForwardPass([method])), shared_model()(inputs))


def test_the_reported_flops_are_those_of_the_score(tmp_path, case):
    method, sequence = make_method(tmp_path), assemble(shared_model(), inputs_of(case))
    with FlopCounterMode(display=False) as counter:
        method.select_tokens(sequence)
    assert method.report().flops == counter.get_total_flops()


def test_reset_forgets_the_report(tmp_path, case):
    method = make_method(tmp_path)
    shared_model()(inputs_of(case), ForwardPass([method]))
    method.reset()
    assert method.report() is None


@pytest.mark.parametrize('layer', [0, 2])
def test_training_runs_what_inference_runs(tmp_path, layer):
    method = make_method(tmp_path, layer=layer)
    training = LightVlaStarTraining(make_queries(layer=layer))
    together = shared_model()(batch_of(CASES), ForwardPass([training]))
    for index, case in enumerate(CASES):
        alone = shared_model()(inputs_of(case), ForwardPass([method]))[0]
        torch.testing.assert_close(together[index], alone, rtol=0, atol=2e-5)
        np.testing.assert_array_equal(training.votes[index], method.report().scores)


@pytest.mark.parametrize('layer', [0, 2])
def test_the_gradient_reaches_every_query_and_the_projector(layer):
    model = load_model().requires_grad_(True)
    training = LightVlaStarTraining(make_queries(layer=layer), noise='gumbel', noise_scale=0.5)
    model(batch_of(CASES), ForwardPass([training])).square().sum().backward()
    gradient = training.queries.queries.grad
    assert (gradient.abs().amax(dim=1) > 0).all()
    assert (model.projector.fc3.weight.grad.abs() > 0).any()


def test_one_step_of_descent_lowers_the_loss_of_a_soft_choice():
    """The straight-through gradient points somewhere useful: a query learns to pick a token."""
    torch.manual_seed(0)
    states = torch.randn(1, 12, 8)
    spans = lay_out({'bos': 1, 'visual': 8, 'prompt': 3})
    sequence = TokenSequence(states, torch.arange(12)[None], spans)
    queries = LearnedQueries(8, count=1)
    training = LightVlaStarTraining(queries)
    wanted = (training.select_tokens(sequence).visual_tokens.item() + 3) % 8
    optimiser = torch.optim.Adam(queries.parameters(), lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        chosen = training.select_tokens(sequence).visual[0, 0]
        (chosen - states[0, 1 + wanted]).square().sum().backward()
        optimiser.step()
    assert training.select_tokens(sequence).visual_tokens.item() == wanted


def test_saved_queries_are_loaded_with_their_layer(tmp_path):
    queries = make_queries(count=5, layer=2)
    queries.save(tmp_path)
    loaded = LearnedQueries.load(tmp_path)
    assert torch.equal(loaded.queries, queries.queries)
    assert loaded.layer == 2
    assert not loaded.queries.requires_grad


def test_unusable_queries_are_refused_with_a_sentence(tmp_path):
    method = LightVlaStar()
    with pytest.raises(ValueError, match='call prepare'):
        method.select_tokens(None)
    with pytest.raises(ValueError, match=f'has no {FILE_NAME}: it was not trained for LightVLA'):
        method.prepare(tmp_path, CONFIG)
    (tmp_path / FILE_NAME).write_bytes(b'half of it')
    with pytest.raises(ValueError, match='cannot be read'):
        method.prepare(tmp_path, CONFIG)
    LearnedQueries(WIDTH + 1).save(tmp_path)
    with pytest.raises(ValueError, match='for another model: its queries are 65 wide'):
        method.prepare(tmp_path, CONFIG)
    make_queries(layer=2).save(tmp_path)
    shallow = replace(CONFIG, language_model=replace(CONFIG.language_model, layers=2))
    with pytest.raises(ValueError, match='select before layer 2'):
        method.prepare(tmp_path, shallow)
    with pytest.raises(ValueError, match='before layer 0 to 3, not 4'):
        LearnedQueries(WIDTH, layer=4)


def test_a_policy_finds_the_queries_in_its_checkpoint(tmp_path):
    create_small_checkpoint(tmp_path)
    with pytest.raises(ValueError, match='was not trained for LightVLA'):
        LocalPolicy.load(tmp_path, methods=('lightvla_star',))
    before = fingerprint(tmp_path)
    width = LocalPolicy.load(tmp_path, methods=())._model.config.language_model.width
    LearnedQueries(width, count=20, layer=1).save(tmp_path)
    policy = LocalPolicy.load(tmp_path, methods=('lightvla_star',))
    assert policy.description.sha256 != before
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    images = dict.fromkeys(CAMERAS, image)
    chunk = policy.infer(InferenceRequest(Observation(images, np.zeros(8), 'pick up the milk')))
    assert chunk.method == 'lightvla_star'
    assert 1 <= chunk.tokens_kept <= 20
