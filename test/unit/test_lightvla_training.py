"""Fine-tuning on the unique tokens is the authors' training on duplicates, at a lower price."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import CASES, assemble, batch_of, inputs_of, load_model, shared, shared_model
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from vla_policy_node.acceleration.lightvla import LightVla, find_winners, score, score_flops
from vla_policy_node.acceleration.lightvla_training import LightVlaTraining
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.sequence import TokenSequence, lay_out

BATCH = [CASES[index] for index in (0, 2, 3)]  # they keep 7, 16 and 4 tokens


@shared
def double_model():
    return load_model().double().requires_grad_(True)


class DuplicatedTraining(LightVlaTraining):
    """The published form: all rows stay, row i becomes W_i H at the position of its token."""

    def _select(self, sequence, scores):
        scores = self._noisy(scores)
        winners = find_winners(scores)
        hard = functional.one_hot(winners, sequence.visual_rows)
        soft = torch.softmax(scores, dim=-1)
        positions = sequence.positions.clone()
        rows = sequence.span('visual')
        positions[:, rows] = positions[:, rows].gather(1, winners)
        chosen = (hard + (soft - soft.detach())) @ sequence.visual
        return replace(sequence.with_visual(chosen), positions=positions)


def in_double(inputs):
    return tuple(x.double() if x.is_floating_point() else x for x in inputs)


def loss_and_gradients(method, inputs):
    torch.manual_seed(1)  # the noise
    model = double_model()
    model.zero_grad()
    actions = model(inputs, ForwardPass([method]))
    targets = torch.linspace(-1, 1, actions.numel()).view_as(actions)
    loss = (actions - targets).abs().mean()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), {name: gradient.clone() for name, gradient in gradients.items()}


@pytest.mark.parametrize('padding_votes', [False, True])
@pytest.mark.parametrize(('noise', 'scale'), [('uniform', 0.0), ('uniform', 1.0), ('gumbel', 0.3)])
def test_same_loss_and_gradients_as_with_duplicates(noise, scale, padding_votes):
    inputs = in_double(batch_of(BATCH))
    method = LightVlaTraining(noise, scale, padding_votes=padding_votes)
    loss, gradients = loss_and_gradients(method, inputs)
    oracle = DuplicatedTraining(noise, scale, padding_votes=padding_votes)
    expected_loss, expected = loss_and_gradients(oracle, inputs)
    assert len(set(method.kept_counts.tolist())) > 1
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
    assert gradients.keys() == expected.keys()
    assert len(gradients) > 80
    for name, gradient in gradients.items():
        tolerance = 1e-10 * expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=tolerance, msg=name)


def test_without_the_count_it_is_another_network():
    inputs = in_double(batch_of(BATCH))
    counted, _ = loss_and_gradients(LightVlaTraining(), inputs)
    once, _ = loss_and_gradients(LightVlaTraining(multiplicity_bias=False), inputs)
    assert abs(counted - once) > 1e-4


@pytest.mark.parametrize('multiplicity_bias', [False, True])
def test_one_sample_trains_what_inference_runs(multiplicity_bias):
    for case in CASES:
        inputs = inputs_of(case)
        method = LightVlaTraining(multiplicity_bias=multiplicity_bias)
        trained = shared_model()(inputs, ForwardPass([method]))
        run = shared_model()(inputs, ForwardPass([LightVla(multiplicity_bias=multiplicity_bias)]))
        torch.testing.assert_close(trained, run, rtol=0, atol=1e-5)


@pytest.mark.parametrize('multiplicity_bias', [False, True])
def test_no_sample_feels_the_others_of_its_batch(multiplicity_bias):
    method = LightVlaTraining(multiplicity_bias=multiplicity_bias)
    together = shared_model()(batch_of(BATCH), ForwardPass([method]))
    assert method.kept_counts.tolist() == [7, 16, 4]
    for actions, case in zip(together, BATCH, strict=True):
        alone = shared_model()(inputs_of(case), ForwardPass([method]))[0]
        torch.testing.assert_close(actions, alone, rtol=0, atol=2e-5)


def test_the_gradient_reaches_tokens_that_were_not_chosen():
    """They have no row in the language model; only the softmax of the scores knows them."""
    sequence = assemble(shared_model(), batch_of(BATCH))
    leaf = sequence.states.clone().requires_grad_(True)
    method = LightVlaTraining()
    pruned = method.select_tokens(replace(sequence, states=leaf))
    states = shared_model().language_model(pruned, shared_model().action_rows('oft'))
    states.square().sum().backward()
    missed = leaf.grad[:, 1:33][method.votes == 0]
    assert len(missed) == 32 * 3 - 27
    assert (missed.abs().amax(dim=1) > 0).all()


def test_rows_that_fill_up_a_batch_pass_no_gradient_on_and_make_no_nan():
    sequence = assemble(shared_model(), batch_of(BATCH))
    method = LightVlaTraining()
    pruned = method.select_tokens(sequence)
    leaf = pruned.states.clone().requires_grad_(True)
    states = shared_model().language_model(
        replace(pruned, states=leaf), shared_model().action_rows('oft'))
    states.square().sum().backward()
    filling = pruned.key_bias.isneginf()
    assert filling[:, 1:17].sum(dim=1).tolist() == [16 - 7, 0, 16 - 4]
    assert (leaf.grad[filling] == 0).all()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize('noise', ['uniform', 'gumbel'])
def test_noise_changes_the_choice_and_stops_at_scale_zero_and_without_gradients(noise):
    sequence = assemble(shared_model(), batch_of(BATCH))
    quiet, noisy = LightVlaTraining(noise), LightVlaTraining(noise, noise_scale=50.0)
    quiet.select_tokens(sequence)
    noisy.select_tokens(sequence)
    assert not torch.equal(quiet.votes, noisy.votes)
    with torch.no_grad():
        noisy.select_tokens(sequence)
    assert torch.equal(quiet.votes, noisy.votes)
    noisy.noise_scale = 0.0
    noisy.select_tokens(sequence)
    assert torch.equal(quiet.votes, noisy.votes)


def test_uniform_noise_overcomes_no_gap_larger_than_its_scale():
    method = LightVlaTraining('uniform', noise_scale=0.5)
    scores = torch.tensor([0.0, 0.501, 0.6]).repeat(500, 1)
    winners = find_winners(method._noisy(scores))
    assert winners.unique().tolist() == [1, 2]


def test_gumbel_noise_chooses_as_often_as_the_softmax_says():
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, 2.0])
    method = LightVlaTraining('gumbel', noise_scale=1.0)
    winners = find_winners(method._noisy(logits.repeat(20_000, 1)))
    shares = torch.bincount(winners) / len(winners)
    torch.testing.assert_close(shares, logits.softmax(dim=0), rtol=0, atol=0.02)


def test_rows_that_fill_up_a_prompt_do_not_vote():
    sequence = assemble(shared_model(), batch_of(BATCH))
    assert sequence.context_hidden.sum() > 0
    method = LightVlaTraining()
    method.select_tokens(sequence)
    for votes, case in zip(method.votes, BATCH, strict=True):
        assert votes.tolist() == case['vote_counts'].tolist()


def test_hidden_context_has_no_weight_in_the_score():
    torch.manual_seed(0)
    visual, context = torch.randn(2, 9, 16), torch.randn(2, 5, 16)
    hidden = torch.tensor([[False, True, False, False, True], [False] * 5])
    scores = score(visual, context, hidden)
    torch.testing.assert_close(scores[0], score(visual[0], context[0][~hidden[0]]))
    torch.testing.assert_close(scores[1], score(visual[1], context[1]))


def test_under_autocast_the_choice_is_that_of_float32():
    """In bfloat16 many scores are equal, and the choice would not be inference's."""
    torch.manual_seed(0)
    positions = torch.arange(250).expand(2, -1)
    alike = torch.randn(2, 25, 64).repeat(1, 10, 1) + 1e-3 * torch.randn(2, 250, 64)
    sequence = TokenSequence(alike, positions, lay_out({'bos': 1, 'visual': 200, 'prompt': 49}))
    method = LightVlaTraining()
    method.select_tokens(sequence)
    expected = method.votes
    with torch.autocast('cpu', torch.bfloat16):
        pruned = method.select_tokens(sequence)
        assert torch.equal(method.votes, expected)
        assert shared_model().language_model(pruned).isfinite().all()


def test_training_pays_for_the_score_and_the_kept_rows_alone():
    sequence = assemble(shared_model(), batch_of(BATCH))
    with FlopCounterMode(display=False) as counter:
        pruned = LightVlaTraining().select_tokens(sequence)
    assert counter.get_total_flops() == 3 * score_flops(sequence.visual, sequence.context)
    assert pruned.states.shape[1] == sequence.states.shape[1] - 32 + 16


def spans_of(tokens):
    return lay_out({'bos': 1, 'visual': tokens, 'prompt': 3})


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**31))
def test_the_kept_rows_are_the_union_of_the_votes(batch, queries, tokens, seed):
    """At their original positions, ascending, with ln(votes) as bias; the others are hidden."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(batch, tokens + 4, 8, generator=generator)
    positions = torch.arange(tokens + 4).expand(batch, -1)
    scores = torch.randn(batch, queries, tokens, generator=generator)
    method = LightVlaTraining()
    pruned = method._select(TokenSequence(states, positions, spans_of(tokens)), scores)
    bias = pruned.key_bias[:, pruned.span('visual')]
    winners = scores.argmax(dim=-1)
    for index in range(batch):
        union, counts = winners[index].unique(return_counts=True)
        rows = pruned.positions[index, 1 : 1 + len(union)]
        assert torch.equal(rows, 1 + union)
        assert torch.equal(pruned.visual[index, : len(union)], states[index, 1 + union])
        torch.testing.assert_close(bias[index, : len(union)].exp(), counts.float())
        assert bias[index, len(union) :].isneginf().all()
    assert pruned.visual_rows == method.kept_counts.max()
    assert torch.equal(pruned.context, states[:, 1 + tokens :])
    assert torch.equal(pruned.states[:, 0], states[:, 0])


@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 2**31))
def test_a_choice_per_sample_is_the_choice_of_each_alone(batch, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(batch, tokens + 4, 8, generator=generator)
    positions = torch.randint(0, 99, (batch, tokens + 4), generator=generator)
    bias = torch.randn(batch, tokens + 4, generator=generator)
    sequence = TokenSequence(states, positions, spans_of(tokens), bias)
    count = 1 + seed % tokens
    kept = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(batch)])
    kept = kept[:, :count].sort().values
    added = torch.randn(batch, count, generator=generator)
    pruned = sequence.keep_visual(kept, added)
    for index in range(batch):
        one = slice(index, index + 1)
        alone = TokenSequence(states[one], positions[one], spans_of(tokens), bias[one])
        alone = alone.keep_visual(kept[index], added[index])
        assert pruned.visual_rows == alone.visual_rows == count
        assert torch.equal(pruned.states[one], alone.states)
        assert torch.equal(pruned.positions[one], alone.positions)
        assert torch.equal(pruned.key_bias[one], alone.key_bias)


def test_an_unknown_noise_is_named():
    with pytest.raises(ValueError, match="must be one of uniform, gumbel, not 'normal'"):
        LightVlaTraining(noise='normal')


def test_a_pass_that_begins_forgets_the_last_one():
    method = LightVlaTraining()
    method.select_tokens(assemble(shared_model(), inputs_of(CASES[0])))
    method.begin_pass()
    assert method.votes is None
