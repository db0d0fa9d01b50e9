"""LightVLA keeps the tokens the public implementation keeps, and obeys the method contract.

Reference data: test/data/lightvla_tiny/README.md.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import CASES, CONFIG, DATA, STATISTICS, assemble, inputs_of, shared_model
from torch.utils.flop_counter import FlopCounterMode

from vla_policy_node import acceleration
from vla_policy_node.acceleration import Method
from vla_policy_node.acceleration.lightvla import LightVla, find_winners, score
from vla_policy_node.encoding.prompt import end_with_empty
from vla_policy_node.nn.forward_pass import ForwardPass


def sequence_of(case):
    return assemble(shared_model(), inputs_of(case))


def assert_close(value, reference):
    tolerance = 5e-5 * np.abs(reference).max()
    np.testing.assert_allclose(value, reference, rtol=0, atol=tolerance)


@pytest.fixture(params=range(4), ids='case{}'.format)
def case(request):
    return CASES[request.param]


def test_scores_and_winners(case):
    sequence = sequence_of(case)
    scores = score(sequence.visual[0], sequence.context[0])
    np.testing.assert_allclose(scores, case['scores'], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(find_winners(scores), case['argmax'])


def test_kept_tokens_stay_in_order_at_their_positions(case):
    method = LightVla()
    pruned = method.select_tokens(sequence_of(case))
    np.testing.assert_array_equal(pruned.positions[0], case['pruned_position_ids'])
    np.testing.assert_array_equal(method.report().kept.nonzero()[0], case['kept_indices'])
    np.testing.assert_array_equal(method.report().scores, case['vote_counts'])
    if 'pruned_embeds' in case:
        assert_close(pruned.states[0], case['pruned_embeds'])
    assert_close(shared_model().language_model(pruned)[0], case['last_hidden'])


@pytest.mark.parametrize(('rows', 'suffix'), [('last56', 'last56'), ('oft', 'oft_rows')])
def test_actions_in_both_row_conventions(case, rows, suffix):
    normalised = shared_model()(inputs_of(case), ForwardPass([LightVla()], action_rows=rows))[0]
    assert_close(normalised, case[f'normalized_actions_{suffix}'])
    actions = STATISTICS.unnormalise_actions(normalised.double().numpy())
    assert_close(actions, case[f'actions_{suffix}'])


def test_end_to_end():
    case = np.load(DATA / 'lightvla_tiny' / 'end_to_end.npz')
    method = LightVla()
    pixels = torch.from_numpy(case['pixel_values']).unflatten(1, (2, 6))
    proprio = torch.from_numpy(STATISTICS.normalise_proprio(case['state_raw']))[None].float()
    ids = torch.tensor(end_with_empty(case['prompt_ids'].tolist(), CONFIG.token_ids.empty))[None]
    normalised = shared_model()(
        (pixels, proprio, ids), ForwardPass([method], LightVla.action_rows))[0]
    actions = STATISTICS.unnormalise_actions(normalised.double().numpy())
    np.testing.assert_array_equal(method.report().kept.nonzero()[0], case['kept_indices'])
    assert_close(actions, case['actions'])


def test_gathering_equals_hiding_the_keys(case):
    sequence = sequence_of(case)
    method = LightVla()
    gathered = shared_model().language_model(method.select_tokens(sequence))
    kept = torch.cat(
        [
            torch.ones(1, dtype=bool),
            torch.from_numpy(method.report().kept),
            torch.ones(sequence.context.shape[1], dtype=bool),
        ]
    )
    bias = torch.zeros(1, len(kept)).masked_fill(~kept, -torch.inf)
    masked = shared_model().language_model(replace(sequence, key_bias=bias))[:, kept]
    torch.testing.assert_close(gathered, masked, rtol=0, atol=2e-5)


def test_multiplicity_bias_equals_duplicates(case):
    """With it, the unique tokens act as the 32 rows with repetitions that training sees."""
    sequence = sequence_of(case)
    winners = torch.from_numpy(case['argmax'])
    visual = torch.arange(1, 1 + sequence.visual_rows)
    rows = torch.arange(sequence.states.shape[1])
    rows[visual] = 1 + winners
    repeated = replace(
        sequence, states=sequence.states[:, rows], positions=sequence.positions[:, rows]
    )
    expected = shared_model().language_model(repeated, shared_model().action_rows('oft'))
    unique = LightVla(multiplicity_bias=True).select_tokens(sequence)
    biased = shared_model().language_model(unique, shared_model().action_rows('oft'))
    torch.testing.assert_close(biased, expected, rtol=0, atol=2e-5)
    plain = shared_model().language_model(
        LightVla().select_tokens(sequence), shared_model().action_rows('oft'))
    assert (plain - expected).abs().max() > 1e-3


def test_a_method_that_does_nothing_changes_no_bit(case):
    inputs = inputs_of(case)
    assert torch.equal(shared_model()(inputs, ForwardPass([Method()])), shared_model()(inputs))


@pytest.fixture
def every_token_votes_for_itself(monkeypatch):
    target = 'vla_policy_node.acceleration.lightvla.score'
    monkeypatch.setattr(target, lambda visual, *_: torch.eye(len(visual)))


@pytest.mark.usefixtures('every_token_votes_for_itself')
def test_keeping_every_token_changes_no_bit(case):
    inputs = inputs_of(case)
    method = LightVla()
    assert torch.equal(shared_model()(inputs, ForwardPass([method])), shared_model()(inputs))
    assert method.report().kept.all()


@pytest.mark.usefixtures('every_token_votes_for_itself')
def test_multiplicity_bias_of_single_votes_changes_nothing(case):
    inputs = inputs_of(case)
    biased = shared_model()(inputs, ForwardPass([LightVla(multiplicity_bias=True)]))
    torch.testing.assert_close(biased, shared_model()(inputs), rtol=0, atol=1e-5)


def test_dropping_tokens_between_layers_equals_hiding_them_from_there_on():
    class DropHalf(Method):
        def before_layer(self, index, sequence):
            kept = torch.arange(0, sequence.visual_rows, 2)
            return sequence.keep_visual(kept) if index == 2 else sequence

    class HideHalf(Method):
        def before_layer(self, index, sequence):
            if index != 2:
                return sequence
            bias = torch.zeros(sequence.positions.shape)
            bias[:, 2 : 1 + sequence.visual_rows : 2] = -torch.inf
            return replace(sequence, key_bias=bias)

    inputs = inputs_of(CASES[0])
    dropped, hidden = (
        shared_model()(inputs, ForwardPass([method()])) for method in (DropHalf, HideHalf))
    torch.testing.assert_close(dropped, hidden, rtol=0, atol=2e-5)
    assert (dropped - shared_model()(inputs)).abs().max() > 1e-3


def test_after_another_method_the_report_is_still_about_all_tokens():
    class DropEven(Method):
        def select_tokens(self, sequence):
            return sequence.keep_visual(torch.arange(1, sequence.visual_rows, 2))

    method = LightVla()
    shared_model()(inputs_of(CASES[0]), ForwardPass([DropEven(), method]))
    report = method.report()
    assert len(report.kept) == len(report.scores) == 32
    assert report.kept.any()
    assert not report.kept[::2].any()
    assert report.scores.sum() == 16


def test_zero_rows_have_no_influence_on_the_choice(case):
    sequence = sequence_of(case)
    context = sequence.context[0]
    zero = (context == 0).all(dim=1)
    assert zero.sum() == 56
    np.testing.assert_array_equal(
        score(sequence.visual[0], context[~zero]).argmax(dim=1), case['argmax']
    )


def test_reset_forgets_the_report(case):
    method = LightVla()
    shared_model()(inputs_of(case), ForwardPass([method]))
    assert method.report() is not None
    method.reset()
    assert method.report() is None


def test_a_past_observation_leaves_no_trace():
    used, fresh = LightVla(), LightVla()
    shared_model()(inputs_of(CASES[0]), ForwardPass([used]))
    inputs = inputs_of(CASES[1])
    answers = [shared_model()(inputs, ForwardPass([method])) for method in (used, fresh)]
    assert torch.equal(*answers)
    np.testing.assert_array_equal(used.report().scores, fresh.report().scores)


def test_of_equal_scores_the_lowest_index_wins():
    scores = torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0], [0.0, 0.0, 3.0]])
    assert find_winners(scores).tolist() == [1, 0, 2]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 2**31))
def test_scores_equal_the_published_formula(visual_rows, context_rows, seed):
    generator = torch.Generator().manual_seed(seed)
    visual = torch.randn(visual_rows, 24, generator=generator)
    context = torch.randn(context_rows, 24, generator=generator)
    context[::3] = 0

    def norm(x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    patches, text = norm(visual.double()), norm(context.double())
    query = norm(torch.softmax(patches @ text.T / 24**0.5, dim=-1) @ text)
    expected = query @ patches.T / 24**0.5
    torch.testing.assert_close(score(visual, context).double(), expected, rtol=0, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(0, 2**31))
def test_winners_do_not_depend_on_the_order_of_the_candidates(tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(tokens, tokens, generator=generator)
    order = torch.randperm(tokens, generator=generator)
    assert torch.equal(order[find_winners(scores[:, order])], find_winners(scores))


def test_nan_reaches_the_actions_instead_of_an_index_error(case):
    sequence = sequence_of(case)
    broken = replace(sequence, states=sequence.states * torch.nan)
    assert shared_model().language_model(LightVla().select_tokens(broken)).isnan().any()


def test_the_reported_flops_are_those_of_the_score(case):
    sequence, method = sequence_of(case), LightVla()
    with FlopCounterMode(display=False) as counter:
        method.select_tokens(sequence)
    assert method.report().flops == counter.get_total_flops()


@settings(max_examples=30, deadline=None)
@given(
    extra=st.integers(0, 40),
    fraction=st.floats(0, 0.99),
    index=st.integers(0, 3),
    seed=st.integers(0, 2**31),
)
def test_ablation_changes_the_kept_set_by_what_it_says(extra, fraction, index, seed):
    sequence = sequence_of(CASES[index])
    method = LightVla(extra_random=extra, drop_fraction=fraction, seed=seed)
    pruned = method.select_tokens(sequence)
    voted = np.isin(np.arange(32), CASES[index]['kept_indices'])
    kept = method.report().kept
    dropped = min(round(fraction * voted.sum()), voted.sum() - 1)
    assert (kept & voted).sum() == voted.sum() - dropped
    assert (kept & ~voted).sum() == min(extra, 32 - voted.sum())
    assert torch.equal(pruned.visual_tokens, torch.from_numpy(kept.nonzero()[0]))
    assert torch.equal(pruned.visual, sequence.visual[:, kept])
    np.testing.assert_array_equal(method.report().scores, CASES[index]['vote_counts'])


def test_ablation_repeats_itself_after_reset_and_varies_until_then(case):
    sequence, method = sequence_of(case), LightVla(extra_random=5, drop_fraction=0.2, seed=3)

    def episode():
        method.reset()
        return [method.select_tokens(sequence).visual_tokens.tolist() for _ in range(4)]

    first = episode()
    assert len(set(map(tuple, first))) > 1
    assert episode() == first


def test_random_extra_tokens_count_once_with_multiplicity_bias(case):
    method = LightVla(multiplicity_bias=True, extra_random=3)
    pruned = method.select_tokens(sequence_of(case))
    votes = method.report().scores[method.report().kept]
    assert (votes == 0).sum() == 3
    bias = pruned.key_bias[0, pruned.span('visual')]
    torch.testing.assert_close(bias.exp(), torch.from_numpy(votes).clamp(min=1))


def test_methods_are_found_by_name():
    assert 'lightvla' in acceleration.available()
    assert acceleration.settings('lightvla') == {
        'multiplicity_bias': False,
        'extra_random': 0,
        'drop_fraction': 0.0,
        'count': 0,
        'seed': 0,
    }
    assert acceleration.create('lightvla', multiplicity_bias=True).multiplicity_bias


@pytest.mark.parametrize(
    ('name', 'chosen', 'sentence'),
    [
        ('lightvl', {}, "no acceleration method 'lightvl'; choose from .*lightvla"),
        ('lightvla', {'ratio': 0.5}, "no setting 'ratio'; it has multiplicity_bias"),
        ('lightvla', {'multiplicity_bias': 'on'}, "must be a bool, not 'on'"),
        ('lightvla', {'drop_fraction': 1}, r'drop_fraction in \[0, 1\), not 0 and 1.0'),
        ('lightvla', {'extra_random': -1}, 'extra_random of at least 0'),
        ('lightvla_star', {'count': 3}, "no setting 'count'; it has none"),
        ('random_tokens', {'keep': 0}, r'random_tokens needs keep in \(0, 1\] .*, not 0.0 and 0'),
        ('fastv', {'layer': 0}, 'a layer of at least 1, not 0'),
        ('fastv', {'count': -1}, 'fastv needs .* a count of at least 0, not 0.5 and -1'),
        ('fastv', {'rows': 'all'}, "rows of prompt_end, prefill, behind, not 'all'"),
    ],
)
def test_unknown_methods_and_settings_are_named(name, chosen, sentence):
    with pytest.raises(ValueError, match=sentence):
        acceleration.create(name, **chosen)


def test_a_count_keeps_the_most_voted_tokens(case):
    voted, counted = LightVla(), LightVla(count=5)
    sequence = sequence_of(case)
    voted.select_tokens(sequence)
    assert counted.select_tokens(sequence).visual_rows == 5
    votes, kept = voted.report().scores, counted.report().kept
    assert votes[kept].min() >= votes[~kept].max()
