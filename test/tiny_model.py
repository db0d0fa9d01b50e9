"""The tiny reference checkpoint and its recorded inputs, for the tests of the methods.

Reference data: test/data/oft_tiny/README.md and test/data/lightvla_tiny/README.md.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vla_policy_node.models import checkpoint
from vla_policy_node.models.config import read_config
from vla_policy_node.models.preprocess import ImagePreprocessor
from vla_policy_node.models.prompt import end_with_empty
from vla_policy_node.models.statistics import read_statistics

DATA = Path(__file__).parent / 'data'
CHECKPOINT = DATA / 'oft_tiny' / 'checkpoint'
CASES = [np.load(DATA / 'lightvla_tiny' / f'case{index}.npz') for index in range(4)]
CONFIG = read_config(checkpoint.read_json(CHECKPOINT, 'config.json'))
STATISTICS = read_statistics(checkpoint.read_json(CHECKPOINT, 'dataset_statistics.json'))
PREPROCESSOR = ImagePreprocessor(
    checkpoint.read_json(CHECKPOINT, 'preprocessor_config.json'), 56, center_crop=False
)


def load_model():
    return checkpoint.load_model(CHECKPOINT, CONFIG, 'cpu', 'float32')


def inputs_of(case):
    """Pixels, proprio and prompt of one recorded case, batch 1."""
    pixels = torch.stack([PREPROCESSOR(image) for image in case['images_u8']])[None]
    ids = end_with_empty(case['prompt_ids'].tolist(), CONFIG.token_ids.empty)
    proprio = STATISTICS.normalise_proprio(case['proprio_raw'])
    return pixels, torch.from_numpy(proprio)[None].float(), torch.tensor(ids)[None]


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
    bias[:, 1 : 1 + sequence.visual_rows].masked_fill_(~torch.as_tensor(kept), -torch.inf)
    return replace(sequence, key_bias=bias)
