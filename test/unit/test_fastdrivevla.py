"""FastDriveVLA: what the scorer keeps, and that reconstruction teaches it foreground."""

import pytest
import torch
from tiny_model import (
    CONFIG,
    HideInstead,
    plain_actions,
    shared_inputs,
    shared_model,
    torchs_flops,
)
from torch.nn import functional

from vla_policy_node.acceleration import create
from vla_policy_node.acceleration.fastdrivevla import FILE_NAME, ForegroundScorer
from vla_policy_node.acceleration.fastdrivevla_training import (
    PatchPainter,
    reconstruction_loss,
    ssim,
    straight_through,
)
from vla_policy_node.families import count_flops
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.transformer import DecoderConfig


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    ForegroundScorer(CONFIG.language_model).save(tmp_path)
    return tmp_path


def make(checkpoint, **settings):
    method = create('fastdrivevla', **settings)
    method.prepare(checkpoint, CONFIG)
    return method


def test_keeping_all_changes_no_bit(checkpoint):
    actions = shared_model()(shared_inputs(0), ForwardPass([make(checkpoint, prune=0.0)]))
    assert torch.equal(actions, plain_actions(0))


def test_half_of_the_tokens_stay_and_dropping_equals_hiding(checkpoint):
    method = make(checkpoint)
    forward_pass = ForwardPass([method])
    counted = torchs_flops(lambda: shared_model()(shared_inputs(0), forward_pass))
    assert method.report().kept.sum() == 16
    own = sum(count_flops(CONFIG, forward_pass.layer_rows).values())
    assert own + method.report().flops == counted
    torch.testing.assert_close(
        shared_model()(shared_inputs(0), ForwardPass([method])),
        shared_model()(shared_inputs(0), ForwardPass([HideInstead(make(checkpoint))])),
        rtol=0, atol=2e-5)


def test_without_positions_the_scorer_does_not_know_the_order():
    torch.manual_seed(0)
    scorer = ForegroundScorer(CONFIG.language_model)
    visual, nowhere = torch.randn(1, 9, 64), torch.zeros(1, 9, dtype=torch.int64)
    order = torch.randperm(9)
    with torch.no_grad():
        torch.testing.assert_close(
            scorer(visual[:, order], nowhere), scorer(visual, nowhere)[:, order])


def test_the_mask_is_hard_forward_and_the_score_backward():
    scores = torch.tensor([-2.0, 0.5, 3.0], requires_grad=True)
    mask = straight_through(scores)
    assert mask.tolist() == [0, 1, 1]
    (mask * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert scores.grad.tolist() == [1, 2, 3]


def test_equal_pictures_are_similar():
    picture = torch.rand(2, 3, 16, 16)
    assert ssim(picture, picture).item() == pytest.approx(1, abs=1e-5)
    assert ssim(picture, 1 - picture) < 0.5


SMALL = DecoderConfig(width=32, layers=1, heads=2, mlp_width=48)


def lesson():
    """Pictures of 4 x 4 patches of 8 px, things in some; token features tell the colours."""
    generator = torch.Generator().manual_seed(0)
    things = torch.rand(8, 16, generator=generator) < 0.4
    colour = torch.where(things, 1.0, 0.3)
    picture = colour.view(8, 1, 1, 4, 4).repeat_interleave(8, 3).repeat_interleave(8, 4)
    pixels = ((picture - 0.5) / 0.5).expand(8, 1, 6, 32, 32)
    visual = torch.randn(1, 1, 32, generator=generator) * colour[..., None]
    positions = 1 + torch.arange(16).expand(8, -1)
    return visual, positions, things, pixels


def test_calling_everything_foreground_leaves_nothing_to_paint_the_background_from():
    """The second half of the loss is then that of no tokens at all, and the gradient says so."""
    torch.manual_seed(0)
    painter = PatchPainter(SMALL, 192)
    visual, positions, things, pixels = lesson()
    seen = []
    painter.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    scores = torch.ones(8, 16)
    reconstruction_loss(painter, visual, positions, scores, things, pixels, (4, 4))
    assert torch.equal(seen[0], visual)
    assert (seen[1] == 0).all()


def test_where_painting_is_copying_reconstruction_finds_the_foreground():
    """From any scores: what is wanted on the one picture is not wanted on the other."""
    generator = torch.Generator().manual_seed(0)
    things = torch.rand(4, 16, generator=generator) < 0.4
    pictures = torch.rand(4, 3, 32, 32, generator=generator)
    tokens = functional.unfold(pictures, 8, stride=8).mT
    pixels = ((pictures - 0.5) / 0.5)[:, None].repeat(1, 1, 2, 1, 1)
    scores = torch.randn(4, 16, generator=generator).requires_grad_()
    optimiser = torch.optim.Adam([scores], lr=0.1)
    for _ in range(60):
        loss = reconstruction_loss(
            lambda visual, positions: visual, tokens, None, scores, things, pixels, (4, 4))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert torch.equal(scores > 0, things)
    # Nothing is left but the seams, which windows of the similarity see.
    assert loss < 0.01


def test_a_scorer_belongs_to_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match='no scorer was trained for it'):
        make(tmp_path)
    ForegroundScorer(SMALL).save(tmp_path)
    with pytest.raises(ValueError, match='for another model'):
        make(tmp_path)
    (tmp_path / FILE_NAME).write_bytes(b'half')
    with pytest.raises(ValueError, match='cannot be read'):
        make(tmp_path)
