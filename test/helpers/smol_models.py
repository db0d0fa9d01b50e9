"""Small SmolVLA policies with random weights: two cameras of 16 tokens, four layers and steps."""

import json
from functools import cache

import torch
from pi_models import write_tokenizer
from safetensors.torch import save_file
from torch import nn
from value_files import ACTION, STATE, made_up, write_processors

from vla_policy_node import families
from vla_policy_node.families.smolvla_config import SIZES

CHUNK = 6
DOCUMENT = {
    'type': 'smolvla',
    'input_features': {
        'observation.state': {'type': 'STATE', 'shape': [8]},
        'observation.images.third_person': {'type': 'VISUAL', 'shape': [3, 40, 60]},
        'observation.images.wrist': {'type': 'VISUAL', 'shape': [3, 64, 64]},
    },
    'output_features': {'action': {'type': 'ACTION', 'shape': [7]}},
    'resize_imgs_with_padding': [64, 64],
    'chunk_size': CHUNK, 'max_state_dim': 12, 'max_action_dim': 10, 'num_steps': 4,
    'num_vlm_layers': 4, 'tokenizer_max_length': 48, 'self_attn_every_n_layers': 2,
    SIZES: {
        'vision': {'width': 16, 'blocks': 2, 'heads': 2, 'mlp_width': 24, 'patch_px': 4,
                   'image_px': 64},
        'pixel_shuffle': 4,
        'text': {'width': 32, 'layers': 4, 'heads': 4, 'key_heads': 2, 'head_width': 8,
                 'mlp_width': 40, 'vocabulary': 300},
        'expert': {'width': 24, 'mlp_width': 32}},
}
# The last number of an action is a gripper from 0 to 1.
_ACTIONS = {'mean': [*[0.0] * 6, 0.5], 'std': [*[0.4] * 6, 0.2], 'q01': [*[-1.0] * 6, 0.0],
            'q99': [1.0] * 7}
CONFIG = families.named('smolvla').config_of(DOCUMENT)


def random_network(**entries):
    """A network of one's own; entries: other entries of config.json."""
    config = families.named('smolvla').config_of({**DOCUMENT, **entries})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = families.create_network(config)
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, mean=float('norm' in name and 'weight' in name),
                                std=0.1)
            else:
                nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
    return network.eval().requires_grad_(False)


@cache
@torch.inference_mode(False)
def shared_network():
    """One for all who leave it as it is."""
    return random_network()


def inputs_of(seed, words=(5, 9, 20, 7), batch=1):
    """Pictures, state and prompt."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(batch, 2, 3, 64, 64, generator=generator) * 2 - 1
    state = torch.randn(batch, 8, generator=generator)
    return pixels, state, torch.tensor([words] * batch)


def write_policy(directory):
    """A whole checkpoint, in the layout of `lerobot/smolvla_base`, with its backbone's config."""
    network, family = shared_network(), families.named('smolvla')
    document = {name: value for name, value in DOCUMENT.items() if name not in (SIZES, 'type')}
    write_processors(directory, {STATE: made_up(8, 1), ACTION: _ACTIONS}, kind='smolvla',
                     vlm_model_name='tiny', **document)
    (directory / 'tiny').mkdir()
    (directory / 'tiny' / 'config.json').write_text(json.dumps({
        'text_config': {'num_attention_heads': 4, 'head_dim': 8},
        'vision_config': {'num_attention_heads': 2}}))
    save_file({family.locate(name, CONFIG)[1]: tensor.contiguous()
               for name, tensor in network.state_dict().items()},
              directory / 'model.safetensors')
    write_tokenizer(directory)
    return directory
