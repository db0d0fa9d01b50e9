"""The tiny reference checkpoint and its recorded inputs, for the tests of the methods.

Reference data: test/data/oft_tiny/README.md and test/data/lightvla_tiny/README.md.
"""

import atexit
import shutil
import tempfile
import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch.utils import flop_counter

from vla_policy_node import acceleration
from vla_policy_node.acceleration import Method, Step
from vla_policy_node.checkpoints import layout
from vla_policy_node.checkpoints.statistics import read_statistics
from vla_policy_node.encoding.preprocess import ImagePreprocessor
from vla_policy_node.encoding.prompt import end_with_empty
from vla_policy_node.families import config_of
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.policy.interface import (
    ActionChunk,
    Execution,
    InferenceRequest,
    Observation,
    PolicyDescription,
    TokenSelection,
)
from vla_policy_node.runtime import loading
from vla_policy_node.runtime.fusing import fuse

DATA = Path(__file__).parents[1] / 'data'
CHECKPOINT = DATA / 'oft_tiny' / 'checkpoint'
CASES = [np.load(DATA / 'lightvla_tiny' / f'case{index}.npz') for index in range(4)]
CONFIG = config_of(layout.read_json(CHECKPOINT, 'config.json'))
STATISTICS = read_statistics(layout.read_json(CHECKPOINT, 'dataset_statistics.json'))
DESCRIPTION = PolicyDescription(
    architecture='tiny', chunk_length=8, action_range=((-1.0,) * 7, (1.0,) * 7))
PREPROCESSOR = ImagePreprocessor(
    layout.read_json(CHECKPOINT, 'preprocessor_config.json'), 56, center_crop=False
)


def shared(make):
    """Made once, when the first test asks: nothing is computed while tests are collected.

    For all who leave it as it is. Not in inference mode, whoever asks first: what is made there
    cannot be differentiated by those who ask later.
    """
    return cache(torch.inference_mode(False)(make))


def load_model():
    """A model of one's own, to change."""
    return loading.load_model(CHECKPOINT, CONFIG, 'cpu', 'float32')


@shared
def shared_model():
    return load_model()


@shared
def shared_fused_model():
    return fuse(load_model())


def assert_close(value, reference, tolerance=2e-5):
    """No element is off by more than this share of the largest one."""
    torch.testing.assert_close(
        value, reference, rtol=0, atol=tolerance * reference.abs().max().item())


def inputs_of(case):
    """Pixels, proprio and prompt of one recorded case, batch 1."""
    pixels = torch.stack([PREPROCESSOR(image) for image in case['images_u8']])[None]
    ids = end_with_empty(case['prompt_ids'].tolist(), CONFIG.token_ids.empty)
    proprio = STATISTICS.normalise_proprio(case['proprio_raw'])
    return pixels, torch.from_numpy(proprio)[None].float(), torch.tensor(ids)[None]


@shared
def shared_inputs(index):
    """Those of one of CASES."""
    return inputs_of(CASES[index])


def plain_actions(index):
    """What the model answers to one of CASES without any method."""
    return shared_model()(shared_inputs(index))


@shared
def shared_sequence():
    """The first of CASES as it enters the language model."""
    return assemble(shared_model(), shared_inputs(0))


def batch_of(cases):
    """The same for several cases, shorter prompts filled up right after BOS."""
    pixels, proprio, prompts = zip(*(inputs_of(case) for case in cases), strict=True)
    length = max(prompt.shape[1] for prompt in prompts)
    pad = CONFIG.token_ids.pad
    filled = []
    for prompt in prompts:
        padding = prompt.new_full((1, length - prompt.shape[1]), pad)
        filled.append(torch.cat([prompt[:, :1], padding, prompt[:, 1:]], dim=1))
    return torch.cat(pixels), torch.cat(proprio), torch.cat(filled)


def assemble(model, inputs):
    """The sequence that enters the language model."""
    pixels, proprio, ids = inputs
    return model.assemble(model.projector(model.visual_features(pixels)), proprio, ids)


def hide_all_but(sequence, kept):
    """The same sequence with visual rows hidden instead of dropped; kept: [V] bool."""
    bias = torch.zeros(sequence.positions.shape)
    bias[:, sequence.span('visual')].masked_fill_(~torch.as_tensor(kept), -torch.inf)
    return replace(sequence, key_bias=bias)


@shared
def untrained():
    """Folder with what learnt methods read for the tiny checkpoint, with random values."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for method in map(acceleration.named, acceleration.available()):
            method.save_untrained(folder, CONFIG)
    return folder


def runs_here(name, config=CONFIG):
    """Whether the tiny checkpoint offers what a method needs."""
    return acceleration.named(name).needs <= config.family.capabilities


def prepared(name, model=None, **settings):
    """A method as `Policy.load` would prepare it for the tiny checkpoint."""
    method = acceleration.create(name, **settings)
    method.prepare(untrained() if method.weights_file else CHECKPOINT, CONFIG)
    if model is not None:
        acceleration.change_network([method], model)
    return method


def rgb_of(pixels):
    """What was normalised: [cameras, 6, H, W] -> [cameras, 3, H, W] in [0, 1]."""
    constants = PREPROCESSOR.normaliser
    return pixels[:, :3] * constants._std[:3] + constants._mean[:3]


def step_of(inputs, position=(0.0, 0.0, 0.0), executed=()):
    """What a policy shows methods at the beginning of a step.

    position: of the hand, m. executed: [N, 7] actions since the last one.
    """
    return Step(
        rgb_of(inputs[0][0]), np.array([*position, *[0.0] * 5]), execution_of(executed))


def execution_of(executed):
    return Execution('sync', executed=np.reshape(executed, (-1, 7)).astype(float))


_LAST = weakref.WeakKeyDictionary()  # method -> its last actions


def run_step(model, method, inputs, position=(0.0, 0.0, 0.0)):
    """One step as a policy makes it: the actions [1, K, 7], and whether the network ran.

    Whatever was answered in the last one was executed to its end.
    """
    executed = () if method.report() is None else _LAST.get(method, ())
    request = InferenceRequest(
        Observation({}, np.zeros(8), 'go'), execution_of(executed))
    reused = method.answers and method.answers.answer(request, DESCRIPTION)
    if reused is None:
        method.begin_step(step_of(inputs, position, executed))
        actions = model(inputs, ForwardPass([method]))
    else:
        actions = torch.from_numpy(reused)[None]
    _LAST[method] = actions[0].detach().double().numpy()
    if method.answers is not None:
        method.answers.record(chunk_of(
            _LAST[method], method.report().kept, method.name if reused is not None else ''))
    return actions, reused is None


def chunk_of(actions, kept, reused_by=''):
    """A chunk as far as a method looks at it that may answer the next step."""
    selection = TokenSelection('third_person', kept, np.empty(0), (0, 0, 1, 1), 'none')
    return ActionChunk(actions, (selection,), {}, 'x', 0, 0, reused_by=reused_by)


def torchs_flops(function):
    """What torch itself counts, attention on the CPU included."""
    attention = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
            lambda query, key, value, *_, **__: flop_counter.sdpa_flop_count(query, key, value)}
    counter = flop_counter.FlopCounterMode(display=False, custom_mapping=attention)
    with counter:
        function()
    return counter.get_total_flops()


class HideInstead(Method):
    """Hides what a method drops, to compare: dropping must equal hiding from there on."""

    def __init__(self, method):
        self._method = method

    def __getattribute__(self, name):
        if name in ('_method', '_hide', 'select_tokens', 'before_layer', '__class__'):
            return object.__getattribute__(self, name)
        return getattr(self._method, name)

    def _hide(self, sequence, changed):
        if changed is sequence:
            return sequence
        hidden = torch.ones(sequence.visual_total, dtype=torch.bool)
        hidden[changed.visual_tokens] = False
        bias = torch.zeros(sequence.positions.shape)
        bias[:, sequence.span('visual')].masked_fill_(
            hidden[sequence.visual_tokens], -torch.inf)
        return replace(sequence, key_bias=bias)

    def select_tokens(self, sequence):
        return self._hide(sequence, self._method.select_tokens(sequence))

    def before_layer(self, index, sequence):
        return self._hide(sequence, self._method.before_layer(index, sequence))
