"""Depth cuts: a cut model is the hidden state of the full one, and the layers are gone."""

import pytest
import torch
from tiny_model import CHECKPOINT, CONFIG, load_model, prepared, shared_inputs

from vla_policy_node import acceleration
from vla_policy_node.acceleration import Method
from vla_policy_node.nn.forward_pass import ForwardPass


class Catch(Method):
    """Keeps what goes into a layer."""

    def before_layer(self, index, sequence):
        if index == 2:
            self.states = sequence.states
        return sequence


def test_half_the_layers_answer_with_the_hidden_state_in_the_middle():
    full, cut, catch = load_model(), load_model(), Catch()
    full(shared_inputs(0), ForwardPass([catch]))
    prepared('depth_cut', cut, keep=0.5)
    rows = full.action_rows('oft')
    expected = full.action_head(full.language_model.norm(catch.states[:, rows]))
    torch.testing.assert_close(cut(shared_inputs(0)), expected, rtol=0, atol=2e-5)


def test_spread_keeps_every_second_layer():
    full, cut = load_model(), load_model()
    prepared('depth_cut', cut, keep=0.5, spread=True)
    left = [layer.mlp.up_proj.weight for layer in cut.language_model.layers]
    assert len(left) == 2
    for weight, index in zip(left, (0, 2), strict=True):
        assert torch.equal(weight, full.language_model.layers[index].mlp.up_proj.weight)


def test_the_memory_of_the_others_is_free():
    full, cut = load_model(), load_model()
    prepared('depth_cut', cut, keep=0.75)
    layer = sum(p.numel() for p in full.language_model.layers[0].parameters())
    assert sum(p.numel() for p in full.parameters()) - layer == sum(
        p.numel() for p in cut.parameters())


@pytest.mark.parametrize('order', [(0, 1), (1, 0)])
def test_a_method_that_drops_tokens_below_the_cut_is_refused(order):
    methods = [acceleration.create('depth_cut', keep=0.5), acceleration.create('fastv', layer=2)]
    with pytest.raises(ValueError, match='before layer 2: the last one is 1'):
        acceleration.prepare([methods[i] for i in order], CHECKPOINT, CONFIG)
    methods[1].layer = 1
    acceleration.prepare(methods, CHECKPOINT, CONFIG)
