"""MoLE: routed layers are left out, and training weighs what running leaves out."""

import pytest
import torch
from tiny_model import CASES, CONFIG, assemble, batch_of, inputs_of, load_model

from vla_policy_node.acceleration import create, mole
from vla_policy_node.acceleration.row_recorder import RowRecorder
from vla_policy_node.training.lessons import Routing

MODEL = load_model()
INPUTS = inputs_of(CASES[0])
LAYERS, WIDTH = CONFIG.language_model.layers, CONFIG.language_model.width


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(1)
    mole.LayerRouter(WIDTH, LAYERS).save(tmp_path, run=3)
    return tmp_path


def make(checkpoint, **settings):
    method = create('mole', **settings)
    method.prepare(checkpoint, CONFIG)
    return method


def layers_of(method):
    ran = []

    class Note(RowRecorder):
        def watch_output(self, index, sequence, output):
            ran.append(index)

    MODEL(*INPUTS, methods=[method, Note()])
    return ran


def test_all_layers_run_bit_for_bit_if_all_are_wanted(checkpoint):
    method = make(checkpoint, run=LAYERS)
    assert torch.equal(MODEL(*INPUTS, methods=[method]), MODEL(*INPUTS))


def test_as_many_run_as_trained_in_order_and_the_last_always(checkpoint):
    ran = layers_of(make(checkpoint))
    assert len(ran) == 3 and ran == sorted(ran) and ran[-1] == LAYERS - 1
    assert layers_of(make(checkpoint, run=1)) == [LAYERS - 1]


def test_without_layers_the_embeddings_pass():
    from vla_policy_node.models.language_model import LayerHooks

    class Nothing(LayerHooks):
        def select_layers(self, sequence, layers):
            return ()

    sequence = assemble(MODEL, INPUTS)
    states = MODEL.language_model(sequence, hooks=Nothing())
    assert torch.equal(states, MODEL.language_model.norm(sequence.states))


def test_skipping_equals_multiplying_by_gates(checkpoint):
    lesson = Routing(CONFIG, run=3)
    lesson.learnt.load_state_dict(make(checkpoint).router.state_dict())
    with torch.no_grad():
        gated = MODEL.action_head(MODEL.decode(assemble(MODEL, INPUTS), [lesson]))
    skipped = MODEL(*INPUTS, methods=[make(checkpoint)])
    torch.testing.assert_close(gated, skipped, rtol=0, atol=2e-5)


def test_in_a_batch_each_sample_is_routed_as_alone(checkpoint):
    lesson = Routing(CONFIG, run=3)
    lesson.learnt.load_state_dict(make(checkpoint).router.state_dict())
    with torch.no_grad():
        together = MODEL.action_head(MODEL.decode(assemble(MODEL, batch_of(CASES)), [lesson]))
    for index, case in enumerate(CASES):
        alone = MODEL(*inputs_of(case), methods=[make(checkpoint)])[0]
        torch.testing.assert_close(together[index], alone, rtol=0, atol=5e-5)


def test_gates_are_zero_or_one_and_pass_the_gradient_of_the_softmax():
    logits = torch.randn(2, 6, requires_grad=True)
    gates = mole.gates(logits, 2)
    assert set(gates.detach().flatten().tolist()) == {0.0, 1.0}
    assert (gates.sum(dim=1) == 2).all()
    weights = torch.randn(2, 6)
    (gates * weights).sum().backward()
    own = torch.autograd.grad((logits.softmax(1) * weights).sum(), logits)[0]
    torch.testing.assert_close(logits.grad, own)


def test_balance_is_lowest_where_probability_is_spread():
    even, one = torch.zeros(1, 4), torch.tensor([[9.0, 0, 0, 0]])
    assert mole.balance_loss(even, 1) < mole.balance_loss(one, 1)
    assert mole.balance_loss(even, 2).item() == pytest.approx(2 * 0.25 / 4)


def test_routing_costs_what_its_layers_cost(checkpoint):
    method = make(checkpoint)
    MODEL(*INPUTS, methods=[method])
    text, visual, hidden, routed = INPUTS[2].shape[1], 32, 16, LAYERS - 1
    macs = (visual + text) * WIDTH * hidden                       # shared projection
    macs += text * (4 * hidden**2 + 2 * hidden * 2 * hidden + 2 * text * hidden)
    macs += hidden * hidden // 2 + hidden // 2 * routed + hidden * routed + hidden
    assert method.report().flops == 2 * macs


def test_a_router_belongs_to_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match='was not trained to skip layers'):
        make(tmp_path)
    mole.LayerRouter(WIDTH, LAYERS + 1).save(tmp_path, run=2)
    with pytest.raises(ValueError, match='for another model'):
        make(tmp_path)
    (tmp_path / mole.FILE_NAME).write_bytes(b'half')
    with pytest.raises(ValueError, match='cannot be read'):
        make(tmp_path)
