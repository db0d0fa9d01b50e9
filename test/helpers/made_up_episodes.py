"""Evaluations whose episodes are made up: a function of method and seed, no simulator."""

import copy
from pathlib import Path

import numpy as np
import pytest
from scripted import ScriptedPolicy

from vla_policy_node.evaluation import worker
from vla_policy_node.evaluation.contenders import Contender
from vla_policy_node.evaluation.episodes import EpisodeResult, Inference
from vla_policy_node.evaluation.grounding import PARTS
from vla_policy_node.policy.interface import ActionChunk, TokenSelection
from vla_policy_node.runtime.small import CONFIG, create_small_checkpoint


def tiny_checkpoint(directory: Path) -> Path:
    document = copy.deepcopy(CONFIG)
    for encoder in document['vision_tiny'].values():
        encoder.update(embed_dim=16, feature_block=0, num_heads=1, mlp_hidden=16, img_size=56)
    document['text_config'].update(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    return create_small_checkpoint(directory, config=document)


class Scene:
    """As much of a world as a worker needs when episodes are made up."""

    instances = 0

    def __init__(self, task, image_size):
        Scene.instances += 1
        self.task, self.instruction = task, task.instruction

    def reset_layout(self, layout, seed):
        self.seed = seed

    def layout_digest(self):
        return f'{self.task.task_id} {self.seed}'

    def close(self):
        pass


def chunk_of(tokens):
    kept = np.zeros((2, 2), bool)
    kept.flat[:tokens] = True
    selections = tuple(
        TokenSelection(camera, kept, np.empty(0), (0, 0, 1, 1), 'none') for camera in 'ab')
    stages = {'vision': 1.0 + tokens, 'head': 0.5}
    return ActionChunk(np.zeros((8, 7)), selections, stages, 'x', 2 * tokens, 8, 1000 * tokens)


@pytest.fixture
def made_up(monkeypatch):
    """Episodes whose outcome is a function of method and seed; returns what was run."""
    ran = []

    class Brain(ScriptedPolicy):
        def __init__(self, label):
            super().__init__()
            self.label = label

        def answer(self, request):
            return chunk_of(4)

    def run_episode(world, policy, parameters, instruction, **options):
        ran.append((policy.label, world.seed))
        tokens = 4 if policy.label == 'dense' else 1
        success = world.seed % 3 > 0 if policy.label == 'dense' else world.seed % 3 > 1
        on = dict.fromkeys(PARTS, np.ones((2, 2, 2), bool)) if options['ground'] else {}
        inferences = tuple(
            Inference(8 * i, phase, chunk_of(tokens), on) for i, phase in
            enumerate(('reach', 'grasp')))
        return EpisodeResult(success, 16, '' if success else 'dropped', inferences)

    monkeypatch.setattr(worker, 'LiberoWorld', Scene)
    monkeypatch.setattr(worker, 'run_episode', run_episode)
    monkeypatch.setattr(Contender, 'load', lambda self, *_: Brain(self.label))
    return ran
