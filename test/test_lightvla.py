"""LightVLA keeps the tokens the public implementation keeps, and obeys the method contract.

Reference data: test/data/lightvla_tiny/README.md.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_policy_node import acceleration
from vla_policy_node.acceleration import Method
from vla_policy_node.acceleration.lightvla import LightVla, find_winners, score
from vla_policy_node.models import checkpoint
from vla_policy_node.models.config import read_config
from vla_policy_node.models.preprocess import ImagePreprocessor
from vla_policy_node.models.prompt import end_with_empty
from vla_policy_node.models.statistics import read_statistics

DATA = Path(__file__).parent / 'data'
CHECKPOINT = DATA / 'oft_tiny' / 'checkpoint'
CASES = [np.load(DATA / 'lightvla_tiny' / f'case{index}.npz') for index in range(4)]
CONFIG = read_config(checkpoint.read_json(CHECKPOINT, 'config.json'))
MODEL = checkpoint.load_model(CHECKPOINT, CONFIG, 'cpu', 'float32')
STATISTICS = read_statistics(checkpoint.read_json(CHECKPOINT, 'dataset_statistics.json'))
PREPROCESSOR = ImagePreprocessor(
    checkpoint.read_json(CHECKPOINT, 'preprocessor_config.json'), 56, center_crop=False
)


def inputs_of(case):
    pixels = torch.stack([PREPROCESSOR(image) for image in case['images_u8']])[None]
    ids = end_with_empty(case['prompt_ids'].tolist(), CONFIG.token_ids.empty)
    proprio = STATISTICS.normalise_proprio(case['proprio_raw'])
    return pixels, torch.from_numpy(proprio)[None].float(), torch.tensor(ids)[None]


def sequence_of(case, model=MODEL):
    pixels, proprio, ids = inputs_of(case)
    return model.assemble(model.projector(model.visual_features(pixels)), proprio, ids)


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
    assert_close(MODEL.language_model(pruned)[0], case['last_hidden'])


@pytest.mark.parametrize(('rows', 'suffix'), [('last56', 'last56'), ('oft', 'oft_rows')])
def test_actions_in_both_row_conventions(case, rows, suffix):
    normalised = MODEL(*inputs_of(case), methods=[LightVla()], action_rows=rows)[0]
    assert_close(normalised, case[f'normalized_actions_{suffix}'])
    actions = STATISTICS.unnormalise_actions(normalised.double().numpy())
    assert_close(actions, case[f'actions_{suffix}'])


def test_end_to_end():
    case = np.load(DATA / 'lightvla_tiny' / 'end_to_end.npz')
    method = LightVla()
    pixels = torch.from_numpy(case['pixel_values']).unflatten(1, (2, 6))
    proprio = torch.from_numpy(STATISTICS.normalise_proprio(case['state_raw']))[None].float()
    ids = torch.tensor(end_with_empty(case['prompt_ids'].tolist(), CONFIG.token_ids.empty))[None]
    normalised = MODEL(pixels, proprio, ids, [method], LightVla.action_rows)[0]
    actions = STATISTICS.unnormalise_actions(normalised.double().numpy())
    np.testing.assert_array_equal(method.report().kept.nonzero()[0], case['kept_indices'])
    assert_close(actions, case['actions'])


def test_gathering_equals_hiding_the_keys(case):
    sequence = sequence_of(case)
    method = LightVla()
    gathered = MODEL.language_model(method.select_tokens(sequence))
    kept = torch.cat(
        [
            torch.ones(1, dtype=bool),
            torch.from_numpy(method.report().kept),
            torch.ones(sequence.context.shape[1], dtype=bool),
        ]
    )
    bias = torch.zeros(1, len(kept)).masked_fill(~kept, -torch.inf)
    masked = MODEL.language_model(replace(sequence, key_bias=bias))[:, kept]
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
    expected = MODEL.language_model(repeated, MODEL.action_rows('oft'))
    unique = LightVla(multiplicity_bias=True).select_tokens(sequence)
    biased = MODEL.language_model(unique, MODEL.action_rows('oft'))
    torch.testing.assert_close(biased, expected, rtol=0, atol=2e-5)
    plain = MODEL.language_model(LightVla().select_tokens(sequence), MODEL.action_rows('oft'))
    assert (plain - expected).abs().max() > 1e-3


def test_a_method_that_does_nothing_changes_no_bit(case):
    inputs = inputs_of(case)
    assert torch.equal(MODEL(*inputs, methods=[Method()]), MODEL(*inputs))


@pytest.fixture
def every_token_votes_for_itself(monkeypatch):
    target = 'vla_policy_node.acceleration.lightvla.score'
    monkeypatch.setattr(target, lambda visual, context: torch.eye(len(visual)))


@pytest.mark.usefixtures('every_token_votes_for_itself')
def test_keeping_every_token_changes_no_bit(case):
    inputs = inputs_of(case)
    method = LightVla()
    assert torch.equal(MODEL(*inputs, methods=[method]), MODEL(*inputs))
    assert method.report().kept.all()


@pytest.mark.usefixtures('every_token_votes_for_itself')
def test_multiplicity_bias_of_single_votes_changes_nothing(case):
    inputs = inputs_of(case)
    biased = MODEL(*inputs, methods=[LightVla(multiplicity_bias=True)])
    torch.testing.assert_close(biased, MODEL(*inputs), rtol=0, atol=1e-5)


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
    dropped, hidden = (MODEL(*inputs, methods=[method()]) for method in (DropHalf, HideHalf))
    torch.testing.assert_close(dropped, hidden, rtol=0, atol=2e-5)
    assert (dropped - MODEL(*inputs)).abs().max() > 1e-3


def test_after_another_method_the_report_is_still_about_all_tokens():
    class DropEven(Method):
        def select_tokens(self, sequence):
            return sequence.keep_visual(torch.arange(1, sequence.visual_rows, 2))

    method = LightVla()
    MODEL(*inputs_of(CASES[0]), methods=[DropEven(), method])
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
    MODEL(*inputs_of(case), methods=[method])
    assert method.report() is not None
    method.reset()
    assert method.report() is None


def test_a_past_observation_leaves_no_trace():
    used, fresh = LightVla(), LightVla()
    MODEL(*inputs_of(CASES[0]), methods=[used])
    inputs = inputs_of(CASES[1])
    assert torch.equal(MODEL(*inputs, methods=[used]), MODEL(*inputs, methods=[fresh]))
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


def test_methods_are_found_by_name():
    assert 'lightvla' in acceleration.available()
    assert acceleration.settings('lightvla') == {'multiplicity_bias': False}
    assert acceleration.create('lightvla', multiplicity_bias=True).multiplicity_bias


@pytest.mark.parametrize(
    ('name', 'chosen', 'sentence'),
    [
        ('lightvl', {}, "no acceleration method 'lightvl'; choose from .*lightvla"),
        ('lightvla', {'ratio': 0.5}, "no setting 'ratio'; it has multiplicity_bias"),
        ('lightvla', {'multiplicity_bias': 'on'}, "must be a bool, not 'on'"),
    ],
)
def test_unknown_methods_and_settings_are_named(name, chosen, sentence):
    with pytest.raises(ValueError, match=sentence):
        acceleration.create(name, **chosen)
