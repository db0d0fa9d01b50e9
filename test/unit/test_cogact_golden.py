"""CogACT's action head, stage by stage, against recorded outputs of the public implementation.

Reference data: test/data/cogact_head/README.md, which also gives the tolerance.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vla_policy_node.checkpoints.statistics import Statistics
from vla_policy_node.families.cogact import CogAct
from vla_policy_node.nn.config import DitConfig
from vla_policy_node.nn.ddim import Ddim
from vla_policy_node.nn.denoising import DiffusionStep
from vla_policy_node.nn.dit import DiffusionTransformer, step_waves

DATA = Path(__file__).parents[1] / 'data' / 'cogact_head'
SIZES = json.loads((DATA / 'config.json').read_text())
EPS = {name: torch.from_numpy(array) for name, array in np.load(DATA / 'eps.npz').items()}
DDIM = np.load(DATA / 'ddim.npz')
DIT = DitConfig(SIZES['depth'], SIZES['hidden_size'], SIZES['num_heads'])
UNUSED = {'history_embedder.linear.weight', 'history_embedder.linear.bias'}


@cache
def load_head():
    head = DiffusionTransformer(DIT, SIZES['condition_dim'], SIZES['chunk'], 7)
    tensors = {name.removeprefix('net.'): tensor
               for name, tensor in load_file(DATA / 'dit_tiny.safetensors').items()}
    missing, unexpected = head.load_state_dict(tensors, strict=False)
    assert (missing, set(unexpected)) == ([], UNUSED)
    return head.eval().requires_grad_(False)


def close(result, expected):
    expected = np.asarray(expected)
    np.testing.assert_allclose(
        np.asarray(result), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_the_diffusion_step_is_embedded_as_in_the_reference():
    close(step_waves(EPS['t']), EPS['t_sinusoidal'])
    close(load_head().t_embedder.mlp(step_waves(EPS['t'])), EPS['t_embedding'])


@pytest.mark.parametrize('kind', ['cond', 'uncond'])
def test_the_noise_is_the_references(kind):
    none = load_head().z_embedder.uncondition.expand_as(EPS['z'])
    conditions = EPS['z'] if kind == 'cond' else none
    for step, expected in zip(EPS['t'], EPS[f'eps_{kind}'], strict=True):
        close(load_head()(EPS['x'], step.expand(len(EPS['x'])), conditions), expected)


@pytest.mark.parametrize('index', range(2))
def test_guidance_is_the_references(index):
    none = load_head().z_embedder.uncondition.expand_as(EPS['z'])
    conditions = load_head().z_embedder(torch.cat([EPS['z'], none]))
    scale = float(EPS['cfg_scales'][index])
    for step, expected in zip(EPS['t'], EPS['eps_cfg'][index], strict=True):
        state = DiffusionStep(load_head(), 0, EPS['x'], int(step), conditions, scale)
        close(state.run()[0], expected)


@pytest.mark.parametrize('steps', [5, 10])
def test_the_schedule_is_the_references(steps):
    schedule = Ddim(SIZES['diffusion_steps'], steps, clip=False)
    assert list(reversed(schedule.steps)) == DDIM[f'ddim{steps}_timestep_map'].tolist()
    np.testing.assert_allclose(schedule._signal, DDIM['alphas_cumprod'], rtol=1e-12)
    clean, noise = torch.zeros(1, 1, 7), torch.ones(1, 1, 7)
    for step, signal in enumerate(DDIM['alphas_cumprod']):
        noisy = schedule.add_noise(clean, noise, torch.tensor([step]))
        assert float(noisy[0, 0, 0]) == pytest.approx((1 - signal) ** 0.5, rel=1e-5)


def test_a_single_step_runs_in_the_middle_and_no_stride_is_made_up():
    assert Ddim(100, 1).steps == (50,)
    with pytest.raises(ValueError, match='cannot be denoised in 30'):
        Ddim(100, 30)


@pytest.mark.parametrize('guidance', [1.0, 1.5])
@pytest.mark.parametrize('steps', [5, 10])
def test_every_denoising_step_is_the_references(steps, guidance):
    name = f'ddim{steps}_cfg{guidance}'
    z = torch.from_numpy(DDIM[f'{name}_z'])
    none = load_head().z_embedder.uncondition.expand_as(z)
    conditions = load_head().z_embedder(torch.cat([z, none]) if guidance > 1 else z)
    actions = torch.from_numpy(DDIM[f'{name}_noise'])
    schedule = Ddim(SIZES['diffusion_steps'], steps, clip=False)
    for index, step in enumerate(schedule.steps):
        state = DiffusionStep(load_head(), index, actions, step, conditions, guidance)
        actions = schedule.step(state.run()[0], step, actions)
        close(actions[0], DDIM[f'{name}_trace'][index])
    close(actions[0], DDIM[f'{name}_sample'])


def test_actions_are_finished_as_in_the_reference():
    low, high, mask = (DDIM[f'post_{name}'] for name in ('q01', 'q99', 'mask'))
    normalised = CogAct.finish(torch.from_numpy(DDIM['post_in']))
    np.testing.assert_array_equal(normalised, DDIM['post_normalized'])
    statistics = Statistics('', low, high, mask, np.empty(0), np.empty(0))
    # The term against division by zero, which OpenVLA-OFT has and CogACT has not, is 1e-8.
    np.testing.assert_allclose(
        statistics.unnormalise_actions(normalised.numpy()), DDIM['post_actions'], atol=2e-8)


def test_what_is_not_finite_stays_so():
    actions = torch.tensor([[0.2, -3.0, torch.nan, torch.inf, 0.0, 0.0, torch.nan]])
    finished = CogAct.finish(actions)
    assert torch.equal(finished.isfinite(), actions.isfinite())
    assert finished[0, 1] == -1
