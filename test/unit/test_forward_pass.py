"""What goes with the tensors of a pass: methods in their order, and what the layers worked on."""

import checkpoint_variants as variants
import pytest
import torch
from tiny_model import assemble, shared_inputs, shared_model

from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.hooks import NO_HOOKS, LayerHooks, PassHooks, hooks_of


class Told(PassHooks):
    """Writes down what it is asked, and by which name."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def begin_pass(self):
        self.log.append((self.name, 'begin'))

    def visual_features(self, features):
        self.log.append((self.name, 'features'))
        return features

    def select_tokens(self, sequence):
        self.log.append((self.name, 'select'))
        return sequence

    def before_layer(self, index, sequence):
        self.log.append((self.name, index))
        return sequence


def test_methods_have_their_turn_in_order_and_stages_end_in_order():
    log = []
    methods = [Told('a', log), Told('b', log)]
    shared_model()(shared_inputs(0), ForwardPass(methods, mark=log.append))
    assert log == [
        ('a', 'begin'), ('b', 'begin'), ('a', 'features'), ('b', 'features'), 'vision',
        ('a', 'select'), ('b', 'select'), 'select',
        *((name, index) for index in (1, 2, 3) for name in 'ab'), 'language_model']


@pytest.mark.parametrize('head', ['l1', 'discrete', 'diffusion', 'autoregressive', 'cogact'])
@torch.inference_mode()
def test_every_family_ends_the_same_stages_and_says_what_its_layers_did(head):
    changes = {'cameras': 1, 'proprio': False} if head == 'autoregressive' else {}
    dit = {'dit': {'blocks': 1, 'width': 24, 'heads': 2}, 'chunk_length': 16}
    changes |= dit if head == 'cogact' else {}
    config = variants.config_of({**variants.CONFIG, 'head': head, **changes})
    model, stages = variants.random_model(config), []
    if hasattr(model.action_head, 'decode'):
        model.action_head.decode = lambda ids: ids  # random words are no actions
    pixels = torch.randn(1, config.cameras, 6, 56, 56)
    forward_pass = ForwardPass(mark=stages.append)
    model((pixels, torch.zeros(1, 8), torch.tensor([[1, 40, 41, 2]])), forward_pass)
    assert stages == ['vision', 'select', 'language_model']
    steps = config.diffusion_steps if head == 'diffusion' else 1
    assert len(forward_pass.layer_rows) == steps * config.language_model.layers
    assert forward_pass.layer_rows[-1].asking == (1 if config.causal else config.rows_read)


def test_only_hooks_that_somebody_has_are_called():
    hooks = ForwardPass([Told('a', [])]).layers(lambda states: states)
    nothing = {name for name in hooks_of(LayerHooks) if name not in vars(hooks)}
    assert nothing == {
        'appended_positions', 'select_layers', 'should_exit', 'watch_attention'}


def test_nobody_takes_part_in_a_pass_without_methods():
    sequence = assemble(shared_model(), shared_inputs(0))
    plain = shared_model().language_model(sequence, hooks=NO_HOOKS)
    noted = shared_model().language_model(
        sequence, hooks=ForwardPass().layers(shared_model().action_head))
    assert torch.equal(plain, noted)
