"""One policy of every kind, small: for tests that must hold for all of them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pi_models
import smol_models
import torch
from scripted import ScriptedPolicy

from vla_policy_node.acceleration.flashvla import FlashTrigger
from vla_policy_node.bench.faults.world import ScriptedPolicy as FaultsPolicy
from vla_policy_node.bench.faults.world import Setup
from vla_policy_node.control.action_spec import ActionSpec
from vla_policy_node.loop.shadowed import ShadowedPolicy
from vla_policy_node.policy.answering import AnsweringPolicy
from vla_policy_node.policy.interface import (
    CAMERAS,
    TOKEN_SELECTIONS,
    ActionChunk,
    InferenceRequest,
    Observation,
    TokenSelection,
)
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.policy.recorded import RecordedPolicy, RecordingPolicy
from vla_policy_node.replay.timeline import PacedPolicy
from vla_policy_node.training.state_only import StateOnlyMlp, StateOnlyPolicy

INSTRUCTION = 'pick up the black bowl'
_STATISTICS = {
    'action': {'q01': [-1.0] * 6 + [0.0], 'q99': [1.0] * 7, 'mask': [True] * 6 + [False]},
    'proprio': {'q01': [-1.0] * 8, 'q99': [1.0] * 8},
}


SELECTIONS = tuple(
    TokenSelection(camera, np.ones((2, 2), bool), np.empty(0), (0.0, 0.0, 1.0, 1.0), 'none')
    for camera in CAMERAS)


class Steady(ScriptedPolicy):
    """Goes on and on in one direction, and looks at everything."""

    def __init__(self):
        super().__init__()
        self.description = replace(self.description, capabilities=(TOKEN_SELECTIONS,))

    def answer(self, request):
        return ActionChunk(np.full((8, 7), 0.1), SELECTIONS, {'head': 1.0}, 'scripted', 8, 8)


def state_only():
    torch.manual_seed(0)
    return StateOnlyPolicy(StateOnlyMlp(2, 8), [INSTRUCTION, 'open the drawer'], _STATISTICS)


def faults():
    setup = Setup(
        parameters={}, chunk_length=8, latency_s=0.0, camera_hz=30.0, state_hz=50.0,
        transport_s=0.0, lag_s=0.0, motion='calm', clock_start_s=0.0, start_m=(0.0, 0.0, 0.5),
        goal_at_s=0.0, simulated=True)
    return FaultsPolicy(setup, np.random.default_rng(0), lambda seconds: None)


def recorded():
    steady = Steady()
    chunk = steady.infer(InferenceRequest(look()))
    return RecordedPolicy(steady.description, [chunk] * 100)


def paced(checkpoint):
    policy = PacedPolicy(LocalPolicy.load(checkpoint, methods=()), 0)
    policy.timeline = SimpleNamespace(advance=lambda duration_ns: None)
    return policy


def shadowed(checkpoint):
    local = LocalPolicy.load(checkpoint, methods=('lightvla',))
    return ShadowedPolicy(local, local.plain(), ActionSpec.libero(), 1, 10)


def flow(checkpoint, kind):
    """Another family, from a checkpoint of its own beside the small one."""
    directory = checkpoint.parent / f'small_{kind}'
    if not directory.exists() and kind == 'smolvla':
        smol_models.write_policy(directory)
    elif not directory.exists():
        pi_models.write_policy(directory, kind, cameras=[*CAMERAS])
    return LocalPolicy.load(directory, methods=('fastv',))


def answering():
    """A policy without any network, and FlashVLA's answers round it."""
    return AnsweringPolicy(Steady(), [FlashTrigger(max_angle=0.1, min_overlap=0.6)])


# Each makes a policy; `checkpoint` is a small one.
KINDS = {
    'dense': lambda checkpoint: LocalPolicy.load(checkpoint, methods=()),
    'lightvla': lambda checkpoint: LocalPolicy.load(checkpoint, methods=('lightvla',)),
    'shadowed': shadowed,
    'paced': paced,
    'recording': lambda checkpoint: RecordingPolicy(LocalPolicy.load(checkpoint, methods=())),
    'recorded': lambda checkpoint: recorded(),
    'blind': lambda checkpoint: state_only(),
    'scripted': lambda checkpoint: Steady(),
    'faults': lambda checkpoint: faults(),
    'answering': lambda checkpoint: answering(),
    'pi0': lambda checkpoint: flow(checkpoint, 'pi0'),
    'pi05': lambda checkpoint: flow(checkpoint, 'pi05'),
    'smolvla': lambda checkpoint: flow(checkpoint, 'smolvla'),
}


def look(seed=0, side=64):
    """What a robot sees that stands somewhere."""
    random = np.random.default_rng(seed)
    images = {camera: random.integers(0, 256, (side, side, 3), np.uint8) for camera in CAMERAS}
    return Observation(images, random.uniform(-0.5, 0.5, 8), INSTRUCTION)
