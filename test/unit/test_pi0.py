"""Laws of pi0 and pi0.5: what must not change the answer, and what must."""

from dataclasses import replace

import pytest
import torch
from pi_models import CHUNK, KINDS, ROOM, inputs_of, shared_network
from tiny_model import torchs_flops

from vla_policy_node.families import count_flops, sequence_rows
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.hooks import PassHooks
from vla_policy_node.nn.kv_cache import KvCache
from vla_policy_node.nn.sequence import TokenSequence, lay_out

pytestmark = pytest.mark.parametrize('kind', KINDS)
NOISE = torch.randn(3, CHUNK, ROOM, generator=torch.Generator().manual_seed(5))


@torch.inference_mode()
def answer(network, sequence, noise):
    nobody = ForwardPass()
    return network.denoise(network.prefill(sequence, nobody), nobody, noise)


@torch.inference_mode()
def prefix(network, inputs, **how):
    pixels, state, words = inputs
    return network.assemble(network.visual(pixels, None), state, words, **how)


def close(one, other, tolerance=2e-6):
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance * other.abs().max().item())


def test_a_hidden_camera_is_one_that_is_not_there(kind):
    network = shared_network(kind).double()
    try:
        pixels, state, words = (x.double() if x.is_floating_point() else x for x in inputs_of(0))
        there = answer(network, prefix(network, (pixels[:, 1:], state, words)), NOISE[:1].double())
        for seen in ([True, False], [False, True]):
            shown = torch.cat([pixels[:, 1:], torch.full_like(pixels[:, 1:], -1)], dim=1)
            shown = shown if seen[0] else shown.flip(1)
            sequence = prefix(network, (shown, state, words), seen=torch.tensor([seen]))
            close(answer(network, sequence, NOISE[:1].double()), there, 1e-12)
    finally:
        network.float()


def test_words_that_fill_up_are_words_that_are_not_there(kind):
    network = shared_network(kind)
    pixels, state, words = inputs_of(0)
    filled = torch.nn.functional.pad(words, (0, 4))
    close(answer(network, prefix(network, (pixels, state, filled), padded=True), NOISE[:1]),
          answer(network, prefix(network, (pixels, state, words)), NOISE[:1]))


def test_a_batch_answers_as_its_samples_do(kind):
    network = shared_network(kind)
    pixels, state, words = inputs_of(0, batch=3)
    words[1, 4:], words[2, 6:] = 0, 0
    together = answer(network, prefix(network, (pixels, state, words)), NOISE)
    for index, length in enumerate((7, 4, 6)):
        one = slice(index, index + 1)
        alone = prefix(network, (pixels[one], state[one], words[one, :length]))
        close(together[one], answer(network, alone, NOISE[one]))


def test_cameras_in_another_order_are_another_observation(kind):
    network = shared_network(kind)
    pixels, state, words = inputs_of(0)
    turned = answer(network, prefix(network, (pixels.flip(1), state, words)), NOISE[:1])
    straight = answer(network, prefix(network, (pixels, state, words)), NOISE[:1])
    assert (turned - straight).abs().max() > 1e-2


def test_with_a_cache_it_computes_what_it_does_in_one_pass(kind):
    """Each step of the flow, also where rows fill up; the state's row ran once before."""
    network = shared_network(kind)
    pixels, state, words = inputs_of(3, batch=2)
    words[1, 5:] = 0
    seen = torch.tensor([[True, True], [True, False]])
    sequence = prefix(network, (pixels, state, words), seen=seen)
    steps = []

    class Watch(PassHooks):
        def denoise(self, step):
            velocity, _ = step.run()
            steps.append((step.actions, velocity))
            return velocity

    with torch.inference_mode():
        watched = ForwardPass([Watch()])
        network.denoise(network.prefill(sequence, watched), watched, NOISE[:2])
        assert len(steps) == network.config.denoising_steps == 5
        for index, (noisy, velocity) in enumerate(steps):
            time = torch.full((2,), 1 - index / 5)
            close(network.predict(sequence, noisy, time)[0], velocity, 2e-5)


def test_one_step_is_noise_less_its_velocity(kind):
    network = shared_network(kind)
    sequence, config = prefix(network, inputs_of(1)), network.config
    network.config = replace(config, denoising_steps=1)
    try:
        made = answer(network, sequence, NOISE[:1])
    finally:
        network.config = config
    with torch.inference_mode():
        velocity, _ = network.predict(sequence, NOISE[:1], torch.ones(1))
    close(made, NOISE[:1] - velocity, 2e-5)


def test_the_state_is_told_to_pi0_alone(kind):
    network = shared_network(kind)
    pixels, state, words = inputs_of(0)
    one, other = (answer(network, prefix(network, (pixels, x, words)), NOISE[:1])
                  for x in (state, state + 1))
    assert torch.equal(one, other) == (kind == 'pi05')


def test_a_state_has_room_for_more_numbers(kind):
    network = shared_network(kind)
    pixels, state, words = inputs_of(0)
    padded = torch.nn.functional.pad(state, (0, ROOM - state.shape[1]))
    assert torch.equal(
        *(answer(network, prefix(network, (pixels, x, words)), NOISE[:1])
          for x in (state, padded)))


def test_the_answer_has_the_numbers_of_the_robot_and_is_the_same_each_time(kind):
    network = shared_network(kind)
    with torch.inference_mode():
        actions = network(inputs_of(0))
        assert torch.equal(actions, network(inputs_of(0)))
    assert actions.shape == (1, CHUNK, 7)


def test_of_the_last_layer_only_keys_and_values_are_computed(kind):
    network = shared_network(kind)
    sequence = prefix(network, inputs_of(0))
    with torch.inference_mode():
        network.prefill(sequence, forward_pass := ForwardPass())
    rows = 2 * 16 + 7
    assert [tuple(layer)[:3] for layer in forward_pass.layer_rows] == [
        (rows, rows, rows)] * 3 + [(0, rows, rows)]
    cache = KvCache()
    with torch.inference_mode():
        network.language_model.run_layers(sequence, cache=cache)
        context = network.prefill(sequence, ForwardPass())
        for index in cache.layers:
            probe = TokenSequence(
                torch.zeros(1, 0, 8), torch.zeros(1, 0, dtype=torch.long), lay_out({}))
            nothing = torch.zeros(1, 1, 0, 8)
            all_keys, all_values = cache.append(index, nothing, nothing, probe.positions)
            keys, values = context.cache.append(index, nothing, nothing, probe.positions)
            assert torch.equal(keys[:, :, :rows], all_keys)
            assert torch.equal(values[:, :, :rows], all_values)


def test_what_it_costs_is_what_torch_counts(kind):
    network = shared_network(kind)
    forward_pass, inputs = ForwardPass(), inputs_of(0)
    with torch.inference_mode():
        counted = torchs_flops(lambda: network(inputs, forward_pass))
    assert sum(count_flops(network.config, forward_pass.layer_rows).values()) == counted
    rows = sequence_rows(network.config, 7)
    ahead = count_flops(network.config, [rows] * 4)
    assert ahead == count_flops(network.config, forward_pass.layer_rows)


def test_training_reaches_everything_that_inference_uses(kind):
    """Of the prefix's last layer that is keys and values."""
    network = shared_network(kind)
    pixels, state, words = inputs_of(0)
    network.requires_grad_(True)
    try:
        with torch.enable_grad():
            sequence = network.assemble(network.visual(pixels, None), state, words)
            loss = network.flow_loss(sequence, NOISE[1:2], NOISE[:1], torch.tensor([0.3])).mean()
            loss.backward()
        without = {name for name, weight in network.named_parameters()
                   if weight.grad is None or not weight.grad.any()}
    finally:
        network.zero_grad()
        network.requires_grad_(False)
    last = 'language_model.layers.3.'
    assert {name for name in without if 'k_proj.bias' not in name} == {
        f'{last}{name}.weight' for name in (
            'self_attn.q_proj', 'self_attn.o_proj', 'post_attention_layernorm', 'mlp.gate_proj',
            'mlp.up_proj', 'mlp.down_proj')} | {'language_model.norm.weight'}
