"""OpenVLA-OFT at a size for two CPU cores, with seeded random weights: where training starts.

Same classes, same files, same sequence layout as the public checkpoints. It cannot do a task yet;
`config.json` says so (`"trained": false`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

from vla_policy_node.common.machine import memory_bytes
from vla_policy_node.encoding.prompt import prompt_text
from vla_policy_node.families import config_of, create_network
from vla_policy_node.families.prismatic import PrismaticVla
from vla_policy_node.nn.heads import L1ActionHead
from vla_policy_node.runtime.saving import save_model

SPECIAL_TOKENS = ('<pad>', '<s>', '</s>', '<empty>')
VOCABULARY = 576

VISION_ENCODER = {
    'embed_dim': 96,
    'feature_block': 3,
    'num_heads': 3,
    'mlp_hidden': 384,
    'patch_size': 14,
    'img_size': 224,
    'class_token': False,
    'num_reg_tokens': 0,
    'layer_scale': False,
}

CONFIG = {
    'model_type': 'openvla',
    'trained': False,
    'action_rows': 'oft',
    'vision_tiny': {
        'featurizer': {
            **VISION_ENCODER, 'class_token': True, 'num_reg_tokens': 4, 'layer_scale': True},
        'fused_featurizer': VISION_ENCODER,
    },
    'text_config': {
        'hidden_size': 192,
        'num_hidden_layers': 6,
        'num_attention_heads': 3,
        'intermediate_size': 512,
        'vocab_size': VOCABULARY,
    },
    'llm_max_length': 2048,
    'tiny_token_ids': {'bos': 1, 'stop': 2, 'empty': 3, 'pad': 0},
}

# The same vision encoders and decoder as a CogACT policy; unlike the public ones it sees the wrist
# camera and the robot's state, without which nothing is grasped in the simulated world.
COGACT_CONFIG = {
    **CONFIG,
    'head': 'cogact',
    'chunk_length': 16,
    'dit': {'blocks': 4, 'width': 192, 'heads': 3},
}
CONFIGS = {'l1': CONFIG, 'cogact': COGACT_CONFIG}

# What of CONFIG a new network may have otherwise, and from how many to how many: the widths of
# heads and of feed-forward layers follow where they are not said.
SIZES = {
    'layers': (1, 64), 'width': (8, 8192), 'heads': (1, 128), 'mlp_width': (1, 32768),
    'vision_blocks': (1, 48), 'vision_width': (8, 4096), 'vision_heads': (1, 64),
}
FAMILIES = ('openvla_oft', 'pi0')  # that begin with random weights; the second: `small_pi0`
_TRAINING_BYTES = 20  # a weight: itself, its gradient, two moments and its average, in float32

NORMALISATION = {
    'tvf_normalize_params': [
        {
            'mean': [0.484375, 0.455078125, 0.40625],
            'std': [0.228515625, 0.2236328125, 0.224609375],
        },
        {'mean': [0.5, 0.5, 0.5], 'std': [0.5, 0.5, 0.5]},
    ],
}

# Motion stays within half of what the controller takes; the gripper is 0 to 1 as it is.
# Proprio spans the reach of a table-top Panda in LIBERO.
STATISTICS = {
    'libero_small': {
        'action': {
            'q01': [-0.5] * 6 + [0.0],
            'q99': [0.5] * 6 + [1.0],
            'mask': [True] * 6 + [False],
        },
        'proprio': {
            'q01': [-0.4, -0.4, 0.4, 1.8, -2.9, -1.2, 0.0, -0.04],
            'q99': [0.2, 0.4, 1.3, 3.4, 2.8, 0.7, 0.04, 0.0],
        },
    },
}

# Words of household manipulation, so that an instruction takes about one token per word.
WORDS = (
    'pick up the put place it in on into of to from and between next from both open close turn '
    'push pull front back left right middle top bottom center table stove cabinet drawer rack '
    'basket plate bowl mug cup pan pot moka box book caddy tray microwave cookie ramekin wine '
    'bottle cream cheese butter milk soup sauce tomato alphabet salad dressing bbq ketchup orange '
    'juice chocolate pudding frying white black red yellow blue green compartment floor wooden '
    'inside under robot gripper block cube'
)


def sized_config(sizes: Mapping[str, int]) -> dict:
    """Return CONFIG with other sizes, of SIZES; 0: as in CONFIG, or in its proportions.

    ValueError with one sentence for sizes that cannot be, or cannot be trained on this machine.
    """
    for name, value in sizes.items():
        least, most = SIZES[name]
        if value and not least <= value <= most:
            raise ValueError(f'{name} is {value}; take {least} to {most}.')
    document = copy.deepcopy(CONFIG)
    text, encoders = document['text_config'], document['vision_tiny']
    width, heads = _width_and_heads(sizes, '', text['hidden_size'], 64)
    text.update(
        hidden_size=width, num_attention_heads=heads,
        num_hidden_layers=sizes.get('layers') or text['num_hidden_layers'],
        intermediate_size=sizes.get('mlp_width') or 8 * round(width / 3))
    width, heads = _width_and_heads(sizes, 'vision_', VISION_ENCODER['embed_dim'], 32)
    for encoder in encoders.values():
        encoder.update(
            embed_dim=width, num_heads=heads, mlp_hidden=4 * width,
            feature_block=(sizes.get('vision_blocks') or encoder['feature_block'] + 1) - 1)
    needed = _TRAINING_BYTES * config_of(document).least_weights
    if needed > memory_bytes():
        raise ValueError(
            f'A network of these sizes takes {needed / 1e9:.1f} GB to train, and this machine has '
            f'{memory_bytes() / 1e9:.1f}; take fewer layers or a smaller width.')
    return document


def _width_and_heads(
    sizes: Mapping[str, int], of: str, width: int, head_width: int
) -> tuple[int, int]:
    """Return a width and the number of heads, which are `head_width` wide if it is not said."""
    width = sizes.get(f'{of}width') or width
    heads = sizes.get(f'{of}heads') or width / head_width
    if heads != int(heads) or width % heads or width // heads % 2:
        raise ValueError(
            f'{of}width is {width}; take a multiple of {head_width}, or with {of}heads a number '
            'that divides it into even widths.')
    return width, int(heads)


def create_small_checkpoint(
    directory: Path | str, seed: int = 0, config: Mapping = CONFIG
) -> Path:
    """Write the small checkpoint into `directory` (made if needed) and return its path.

    Same seed, same bytes on one kind of processor. config: other sizes, in the form of CONFIG.
    """
    directory = create_small_files(directory, config)
    save_model(directory, _random_model(config, seed).bfloat16())
    return directory


def create_small_files(directory: Path | str, config: Mapping) -> Path:
    """Write everything but weights: `config` as config.json, tokenizer, statistics."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, document in (
        ('config.json', config),
        ('preprocessor_config.json', NORMALISATION),
        ('dataset_statistics.json', STATISTICS),
    ):
        (directory / name).write_text(json.dumps(document, indent=1) + '\n', encoding='utf-8')
    text = prompt_text(WORDS)
    make_tokenizer(SPECIAL_TOKENS, '<s>', text).save(str(directory / 'tokenizer.json'))
    return directory


def make_tokenizer(special: Sequence[str], first: str, text: str) -> Tokenizer:
    """Byte-level BPE: knows every byte, and the words of `text` as whole tokens.

    special: its first ids. first: the one of them that begins each prompt.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text, text], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f'{first} $A', special_tokens=[(first, special.index(first))]
    )
    return tokenizer


@torch.no_grad()
def _random_model(config: Mapping, seed: int) -> PrismaticVla:
    """Weights that carry signals through at about unit size, so that images reach the actions.

    Linear layers sum to zero over their inputs. Otherwise the positive mean of GELU and ReLU
    becomes a direction all visual tokens share, and LightVLA's queries all vote for the same few.
    """
    generator = torch.Generator().manual_seed(seed)
    model = create_network(config_of(config))
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=fan_in**-0.5, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, generator=generator)
        if isinstance(module, nn.Linear):
            module.weight -= module.weight.mean(dim=1, keepdim=True)
    for name, parameter in model.named_parameters():
        if name.endswith(('pos_embed', 'cls_token', 'reg_token', 'positional_embedding')):
            nn.init.normal_(parameter, std=0.5, generator=generator)
        elif name.endswith('uncondition'):
            nn.init.normal_(parameter, generator=generator)
    if isinstance(model.action_head, L1ActionHead):
        last = model.action_head.fc2
        last.weight *= 0.4  # normalised actions mostly within [-1, 1]
        last.bias[-1] = 0.5  # the gripper between open and closed
    return model
