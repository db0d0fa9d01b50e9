"""Flow matching in training: the pass with one prefix for many draws is the network's own."""

import numpy as np
import pytest
import torch
from pi_models import CHUNK, KINDS, ROOM, inputs_of, random_network

from vla_policy_node.nn.flow import between
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.training import stages
from vla_policy_node.training.batches import Batch
from vla_policy_node.training.config import TrainingConfig
from vla_policy_node.training.flow import flow_losses
from vla_policy_node.training.grounding import GroundingHeads, row_width
from vla_policy_node.training.losses import compute_losses

SAMPLES, TIMES = 2, torch.tensor([0.1, 0.9, 0.4, 0.7])


@pytest.fixture(scope='module', params=KINDS)
def network(request):
    with torch.inference_mode(False):
        return random_network(request.param).requires_grad_(True).train()


def prefix_of(network):
    pixels, state, words = inputs_of(0, SAMPLES)
    return network.assemble(network.visual(pixels, None), state, words)


def gradients(network, loss):
    """Those that are not 0, as it is for what is added to all keys alike."""
    network.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in network.named_parameters()
            if weight.grad is not None and weight.grad.any() and 'k_proj.bias' not in name}


def test_many_draws_of_a_sample_are_as_many_passes(network):
    """And their gradients add up, in the prefix as in the expert."""
    generator = torch.Generator().manual_seed(2)
    noisy = torch.randn(2 * SAMPLES, CHUNK, ROOM, generator=generator)
    together = network.flow(prefix_of(network), ForwardPass(), 2)(noisy, TIMES).run()[0]
    found = gradients(network, together.square().sum())
    alone, expected = [], {}
    for draw in range(2):
        velocity, _ = network.predict(prefix_of(network), noisy[draw::2], TIMES[draw::2])
        alone.append(velocity.detach())
        for name, gradient in gradients(network, velocity.square().sum()).items():
            expected[name] = expected.get(name, 0) + gradient
    torch.testing.assert_close(
        together.detach(), torch.stack(alone, 1).flatten(0, 1), rtol=1e-4, atol=1e-4)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-3 * scale, msg=name)


def make_batch(network, has_actions=(True, False)):
    config, rng = network.config, torch.Generator().manual_seed(3)
    pixels, state, words = inputs_of(0, SAMPLES)
    patches = config.grid[0] * config.grid[1]
    coverage = torch.zeros(SAMPLES, config.cameras, 2, patches)
    coverage[:, :, 0, 5], coverage[:, :, 1, 9] = 1, 1
    return Batch(
        pixels=pixels, proprio=state, prompt_ids=words,
        actions=torch.randn(SAMPLES, CHUNK, 7, generator=rng),
        has_actions=torch.tensor(has_actions), name_ids=torch.full((SAMPLES, 2, 1), 4),
        coverage=coverage, offset=torch.ones(SAMPLES, 2, 3),
        place=torch.ones(SAMPLES, config.cameras, 2, 3), asked=torch.zeros(SAMPLES).long(),
        goal=torch.ones(SAMPLES).long(), things=coverage.any(2))


def config_of(losses, **changes):
    return TrainingConfig('behavior_cloning', 1, losses=losses, **changes)


class SameNoise:
    """A generator whose seeds of noise do not depend on what was drawn before."""

    def __init__(self, seed):
        self.seed, self.random = seed, np.random.default_rng(seed).random

    def integers(self, most):
        return self.seed


def losses_of(network, config, batch=None, seed=0):
    batch = batch or make_batch(network)
    torch.manual_seed(0)
    sizes = network.config
    heads = GroundingHeads(sizes.language_model.width, sizes.cameras, row_width(sizes))
    objective = stages.named(config.stage).objective(sizes, config)
    return compute_losses(
        network, heads, batch, config, objective, SameNoise(seed))


def test_the_loss_is_that_of_lerobot(network):
    """The mean over the robot's numbers, of samples that have actions."""
    batch, config = make_batch(network), config_of({'flow': 1.0}, repeated_diffusion_steps=1)
    found = losses_of(network, config, batch)['flow']
    drawn = {}

    class Kept:
        config, training, action_head = network.config, True, network.action_head

        def flow(self, sequence, forward_pass, draws):
            step_of = network.flow(sequence, forward_pass, draws)
            return lambda noisy, time: drawn.update(noisy=noisy, time=time) or step_of(noisy, time)

    heads = GroundingHeads(32, 2, 16)
    again = flow_losses(
        Kept(), prefix_of(network), ForwardPass(), batch.coverage, batch, heads, config,
        SameNoise(0))['flow']
    assert torch.equal(found, again)
    actions = torch.nn.functional.pad(batch.actions, (0, ROOM - 7))
    share = drawn['time'][:, None, None]
    noise = (drawn['noisy'] - (1 - share) * actions) / share
    wanted = between(actions, noise, drawn['time'])[1]
    velocity, _ = network.predict(prefix_of(network), drawn['noisy'], drawn['time'])
    expected = (velocity - wanted)[:1, :, :7].square().mean()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_all_losses_reach_prefix_and_expert(network):
    weights = {'flow': 1.0, 'token': 1.0, 'point': 1.0, 'attend': 1.0, 'readout': 1.0}
    for name in ('flow', 'attend', 'readout'):
        loss = losses_of(network, config_of(weights, repeated_diffusion_steps=2))[name]
        reached = gradients(network, loss)
        for part in ('vision.', 'projector.', 'language_model.layers.0.', 'action_head.decoder.'):
            assert any(parameter.startswith(part) for parameter in reached), (name, part)


def test_a_step_lowers_the_loss(network):
    config = config_of({'flow': 1.0, 'attend': 0.5, 'readout': 0.5}, repeated_diffusion_steps=4)

    def total():
        losses = losses_of(network, config)
        return losses['flow'] + 0.5 * losses['attend'] + 0.5 * losses['readout']

    before = total()
    gradient = gradients(network, before)
    length = torch.stack([part.norm() for part in gradient.values()]).norm()
    kept = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name in gradient:
                weight -= 1e-2 * gradient[name] / length
        after = total()
        network.load_state_dict(kept, strict=False)
    assert after < before


def test_a_sample_of_all_tokens_is_trained_as_all_tokens(network):
    """Where nothing is left out, no token speaks for another."""
    weights = {'flow': 1.0, 'attend': 1.0, 'token': 1.0}
    whole = losses_of(network, config_of(weights))
    sampled = losses_of(network, config_of(weights, tokens_kept=16))
    for name in ('attend', 'token'):
        torch.testing.assert_close(sampled[name], whole[name], rtol=1e-4, atol=1e-4)


def test_the_same_seed_draws_the_same_noise(network):
    config = config_of({'flow': 1.0})
    first, second, other = (
        losses_of(network, config, seed=seed)['flow'] for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
