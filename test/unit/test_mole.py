"""MoLE: routed layers are left out, and training weighs what running leaves out."""

import pytest
import torch
from tiny_model import (
    CASES,
    CONFIG,
    assemble,
    batch_of,
    inputs_of,
    load_model,
    plain_actions,
    shared_inputs,
    shared_model,
    shared_sequence,
)

from vla_policy_node.acceleration import create, mole
from vla_policy_node.acceleration.mole_training import Routing
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.hooks import LayerHooks, PassHooks

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


def act(sequence, lesson):
    return shared_model().action_head(shared_model().prefill(sequence, ForwardPass([lesson])))


def layers_of(method):
    ran = []

    class Note(PassHooks):
        def watch_output(self, index, sequence, output):
            ran.append(index)

    shared_model()(shared_inputs(0), ForwardPass([method, Note()]))
    return ran


def test_all_layers_run_bit_for_bit_if_all_are_wanted(checkpoint):
    method = make(checkpoint, run=LAYERS)
    assert torch.equal(shared_model()(shared_inputs(0), ForwardPass([method])), plain_actions(0))


def test_as_many_run_as_trained_in_order_and_the_last_always(checkpoint):
    ran = layers_of(make(checkpoint))
    assert len(ran) == 3 and ran == sorted(ran) and ran[-1] == LAYERS - 1
    assert layers_of(make(checkpoint, run=1)) == [LAYERS - 1]


def test_without_layers_the_embeddings_pass():
    class Nothing(LayerHooks):
        def select_layers(self, sequence, layers):
            return ()

    sequence = assemble(shared_model(), shared_inputs(0))
    states = shared_model().language_model(sequence, hooks=Nothing())
    assert torch.equal(states, shared_model().language_model.norm(sequence.states))


def test_skipping_equals_multiplying_by_gates(checkpoint):
    lesson = Routing(CONFIG, run=3)
    lesson.router.load_state_dict(make(checkpoint).router.state_dict())
    with torch.no_grad():
        gated = act(shared_sequence(), lesson)
    skipped = shared_model()(shared_inputs(0), ForwardPass([make(checkpoint)]))
    torch.testing.assert_close(gated, skipped, rtol=0, atol=2e-5)


def test_in_a_batch_each_sample_is_routed_as_alone(checkpoint):
    lesson = Routing(CONFIG, run=3)
    lesson.router.load_state_dict(make(checkpoint).router.state_dict())
    with torch.no_grad():
        together = act(assemble(shared_model(), batch_of(CASES)), lesson)
    for index, case in enumerate(CASES):
        alone = shared_model()(inputs_of(case), ForwardPass([make(checkpoint)]))[0]
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


def published_logits(weights, temperature_bias, images, text):
    """The public router in formulas: exact GELU, norms behind the sums, 8 heads of 128."""
    def linear(x, name):
        y = x @ weights[f'{name}.weight'].T
        return y + weights[f'{name}.bias'] if f'{name}.bias' in weights else y

    def gelu(x):
        return x * 0.5 * (1 + torch.erf(x / 2**0.5))

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return x * weights[f'{name}.weight'] + weights[f'{name}.bias']

    images, words = linear(images, 'project'), linear(text, 'project')
    spatial = linear(gelu(linear(images.mean(dim=1), 'spatial.0')), 'spatial.2')
    asked = words @ weights['text.self_attn.in_proj_weight'].T
    asked = asked + weights['text.self_attn.in_proj_bias']
    query, key, value = (
        part.unflatten(2, (8, -1)).transpose(1, 2) for part in asked.chunk(3, dim=2))
    attention = (query @ key.mT / key.shape[-1] ** 0.5).softmax(dim=-1) @ value
    mixed = linear(attention.transpose(1, 2).flatten(2), 'text.self_attn.out_proj')
    read = norm(words + mixed, 'text.norm1')
    read = norm(read + linear(gelu(linear(read, 'text.linear1')), 'text.linear2'), 'text.norm2')
    temporal = linear(read.mean(dim=1), 'temporal')
    heat = words[:, 0] @ weights['temperature.weight'].T + temperature_bias
    return (spatial + temporal) * heat.sigmoid()


def test_at_the_published_width_the_router_is_the_published_one():
    """randn(2, 256, 4096) and randn(2, 20, 4096); ReLU for GELU is off by 0.06."""
    torch.manual_seed(0)
    router = mole.LayerRouter(4096, 33).eval()
    images, text = torch.randn(2, 256, 4096), torch.randn(2, 20, 4096)
    weights = router.state_dict()
    assert weights['project.weight'].shape == (1024, 4096)
    assert weights['text.linear1.weight'].shape == (2048, 1024)
    assert not {'spatial.2.bias', 'temporal.bias'} & weights.keys()
    normed = [x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() for x in (images, text)]
    with torch.no_grad():
        logits = router(images, text)
        torch.testing.assert_close(
            logits, published_logits(weights, weights['temperature.bias'], *normed),
            rtol=0, atol=1e-5)


def test_the_temperature_begins_near_the_sigmoid_of_one():
    biases = [mole.LayerRouter(64, 4).temperature.bias.item() for _ in range(200)]
    limit = 16**-0.5  # of torch's own beginning, for 16 inputs
    assert 1 - limit <= min(biases) and max(biases) <= 1 + limit


def test_distillation_is_nothing_for_equals_and_grows_with_the_distance():
    torch.manual_seed(0)
    rows = torch.randn(2, 5, 16)
    assert mole.distillation_loss(rows, rows).item() == pytest.approx(0, abs=1e-9)
    near, far = (mole.distillation_loss(rows + step, rows) for step in (
        0.1 * torch.eye(16)[0], 0.5 * torch.eye(16)[0]))
    assert 0 < near < far


def test_of_one_row_distillation_is_half_divergence_and_half_squared_error():
    """CogACT's cognition token: with nothing beside it its weight is 1."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 1, 8)
    p, q = (rows.softmax(dim=-1) for rows in (teacher, student))
    expected = 0.5 * q * (q / p).log() + 0.5 * (teacher - student) ** 2
    torch.testing.assert_close(mole.distillation_loss(student, teacher), expected.mean())


def test_rows_that_both_attend_to_weigh_most():
    """Two rows, of which both networks attend to the longer one."""
    teacher = torch.tensor([[[9.0, 0.0], [1.0, 0.0]]])
    long, short = teacher.clone(), teacher.clone()
    long[0, 0, 1] += 0.5
    short[0, 1, 1] += 0.5
    assert mole.distillation_loss(long, teacher) > 10 * mole.distillation_loss(short, teacher)


def test_the_teacher_runs_all_layers_with_the_averaged_weights():
    model = load_model()
    lesson = Routing(CONFIG, run=2, distils=True)
    name = 'language_model.layers.1.mlp.up_proj.weight'
    averaged = 2 * model.get_parameter(name).detach()
    lesson.average = {f'model.{name}': averaged, 'model.action_head.fc1.bias': torch.zeros(1)}
    states = model.prefill(assemble(model, shared_inputs(0)), ForwardPass([lesson]))
    losses = lesson.state_losses(model, states, None)
    with torch.no_grad():
        before = model.get_parameter(name).clone()
        model.get_parameter(name).copy_(averaged)
        taught = model.prefill(assemble(model, shared_inputs(0)), ForwardPass())
        model.get_parameter(name).copy_(before)
    torch.testing.assert_close(losses['distil'], mole.distillation_loss(states, taught))
    assert losses['distil'] > 0
    assert losses.keys() == {'balance', 'distil'}


def test_balance_is_lowest_where_probability_is_spread():
    even, one = torch.zeros(1, 4), torch.tensor([[9.0, 0, 0, 0]])
    assert mole.balance_loss(even, 1) < mole.balance_loss(one, 1)
    assert mole.balance_loss(even, 2).item() == pytest.approx(2 * 0.25 / 4)


def test_routing_costs_what_its_layers_cost(checkpoint):
    method = make(checkpoint)
    shared_model()(shared_inputs(0), ForwardPass([method]))
    text, visual, hidden, routed = shared_inputs(0)[2].shape[1], 32, 16, LAYERS - 1
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
