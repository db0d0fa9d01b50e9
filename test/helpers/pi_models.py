"""Small policies of pi0 and pi0.5 with weights from a seed, and their files in every layout."""

import json
from dataclasses import replace
from functools import cache

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from vla_policy_node import families
from vla_policy_node.families import config_of
from vla_policy_node.families.pi0_files import gemma
from vla_policy_node.nn.siglip import siglip_config
from vla_policy_node.nn.transformer import DecoderConfig

KINDS = ('pi0', 'pi05')
INNER = 'paligemma_with_expert.'
NAMES = {
    'vision': f'{INNER}paligemma.model.vision_tower.vision_model.',
    'projector': f'{INNER}paligemma.model.multi_modal_projector.linear.',
    'language_model': f'{INNER}paligemma.model.language_model.',
    'expert': f'{INNER}gemma_expert.model.',
    'heads': '',
    'words': f'{INNER}paligemma.lm_head.weight',
}
EMBED_TOKENS = f'{INNER}paligemma.model.language_model.embed_tokens.weight'
CHUNK, ROOM = 6, 32
VOCABULARY = 320
_HEADS = {'layers': 4, 'heads': 8, 'head_width': 8, 'key_heads': 1}


def feature(kind, *shape):
    return {'type': kind, 'shape': [*shape]}


def document(kind, cameras=('image', 'wrist_image'), state=8, actions=7):
    """config.json as LeRobot writes it, as far as anything here reads it."""
    return {
        'type': kind, 'chunk_size': CHUNK, 'n_action_steps': CHUNK, 'num_inference_steps': 5,
        'image_resolution': [56, 56], 'max_state_dim': ROOM, 'max_action_dim': ROOM,
        'tokenizer_max_length': 200,
        'input_features': {
            **{f'observation.images.{name}': feature('VISUAL', 3, 48, 64) for name in cameras},
            'observation.state': feature('STATE', state)},
        'output_features': {'action': feature('ACTION', actions)},
        'normalization_mapping': {
            'VISUAL': 'IDENTITY', 'STATE': 'MEAN_STD', 'ACTION': 'MEAN_STD'}}


def small_config(kind, **changes):
    """Sizes that the shapes of the weights tell, too."""
    text = gemma(DecoderConfig(width=32, mlp_width=40, vocabulary=VOCABULARY, **_HEADS))
    expert = gemma(DecoderConfig(width=16, mlp_width=24, vocabulary=0, **_HEADS))
    return replace(
        config_of({**document(kind), 'head': kind}), language_model=text,
        vision=siglip_config(24, 2, 2, 40, 14, 56),
        expert=replace(expert, condition_width=16 if kind == 'pi05' else 0),
        names={**NAMES, 'time': 'time_mlp_' if kind == 'pi05' else 'action_time_mlp_'}, **changes)


def random_network(kind, **changes):
    """A network of one's own, to change."""
    network = families.create_network(small_config(kind, **changes))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
            if weight.ndim == 1:
                weight.mul_(0.1)
            elif 'embed' not in name:
                weight.mul_(weight[0].numel() ** -0.5)
    return network.eval().requires_grad_(False)


@cache
def shared_network(kind):
    """For all who leave it as it is."""
    with torch.inference_mode(False):
        return random_network(kind)


def inputs_of(seed, batch=1, cameras=2):
    """Pixels, state and words."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(batch, cameras, 3, 56, 56, generator=generator) * 2 - 1
    state = torch.randn(batch, 8, generator=generator)
    words = torch.randint(3, VOCABULARY, (batch, 7), generator=generator)
    return pixels, state, words


def tensors_of(network):
    """Weights by their names in `lerobot/pi0_base`, with the two tables of words."""
    locate = families.locator(network.config)
    tensors = {locate(name)[1]: weight.clone() for name, weight in network.state_dict().items()}
    tensors[f'{INNER}gemma_expert.lm_head.weight'] = torch.zeros(VOCABULARY, 16)
    return tensors


def _untied(tensors):
    """Saved from transformers 5 on: both tables, of which `lm_head` may be older."""
    words = tensors[NAMES['words']]
    return {f'model.{name}': tensor for name, tensor in {
        **tensors, EMBED_TOKENS: words, NAMES['words']: words + 1}.items()}


def _older(tensors):
    """LeRobot before 0.4."""
    rename = (('paligemma.model.language_model.', 'paligemma.language_model.model.'),
              ('paligemma.lm_head.', 'paligemma.language_model.lm_head.'),
              ('paligemma.model.', 'paligemma.'))
    found = {}
    for name, tensor in tensors.items():
        for old, new in rename:
            if old in name:
                name = name.replace(old, new)
                break
        found[f'model.{name}'] = tensor
    return found


# Layout -> what it makes of the tensors of `lerobot/pi0_base`.
LAYOUTS = {
    'tied': lambda tensors: tensors,
    'bfloat16': lambda tensors: {name: x.bfloat16() for name, x in tensors.items()},
    'model.': lambda tensors: {f'model.{name}': x for name, x in tensors.items()},
    'untied': _untied,
    'embed_tokens': lambda tensors: {
        EMBED_TOKENS if name == NAMES['words'] else name: x for name, x in tensors.items()},
    'compiled': lambda tensors: {f'_orig_mod.{name}': x for name, x in tensors.items()},
    'older': _older,
    'time': lambda tensors: {
        name.replace('action_time_mlp_', 'time_mlp_') if name.startswith('action_time')
        else name.replace('time_mlp_', 'action_time_mlp_'): x for name, x in tensors.items()},
}


def write_weights(directory, network, layout='tied'):
    """`model.safetensors` of a network."""
    tensors = LAYOUTS[layout](tensors_of(network))
    save_file({name: x.contiguous().clone() for name, x in tensors.items()},
              directory / 'model.safetensors')


def write_tokenizer(directory):
    """The toy tokenizer of the packs: id 2, then 3 + each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    letters = {byte: chr(byte if byte in printable else next(others)) for byte in range(256)}
    words = {'<pad>': 0, '<eos>': 1, '<bos>': 2}
    made = Tokenizer(models.BPE(
        {**words, **{letter: 3 + byte for byte, letter in letters.items()}}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.post_processor = processors.TemplateProcessing(
        single='<bos> $A', special_tokens=[('<bos>', 2)])
    made.save(str(directory / 'tokenizer.json'))


def write_statistics(directory, states=8, actions=7, robots=('tiny',)):
    """As openpi keeps them, for each of these robots."""
    def numbers(count, shift):
        return {'mean': [0.1 * shift] * count, 'std': [0.5] * count,
                'q01': [*[-1.0 - shift] * (count - 1), 0.0], 'q99': [1.0] * count}

    for shift, robot in enumerate(robots):
        folder = directory / 'assets' / robot
        folder.mkdir(parents=True)
        (folder / 'norm_stats.json').write_text(json.dumps({'norm_stats': {
            'state': numbers(states, shift), 'actions': numbers(actions, shift)}}))


def write_policy(directory, kind, **changes):
    """A whole checkpoint that loads and runs, in the layout of `lerobot/pi0_base`."""
    write_checkpoint(directory, kind, **changes)
    write_tokenizer(directory)
    write_statistics(directory)
    return directory


def openpi_document(horizon=CHUNK):
    """config.json as openpi's converter writes it."""
    return {'action_dim': ROOM, 'action_horizon': horizon, 'paligemma_variant': 'gemma_2b',
            'action_expert_variant': 'gemma_300m', 'precision': 'float32'}


def write_checkpoint(directory, kind, layout='tied', **changes):
    """config.json and weights; without statistics and tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / 'config.json').write_text(json.dumps({**document(kind), **changes}))
    (directory / 'tiny_sizes.json').write_text('{"vision": {"num_heads": 2}}')
    write_weights(directory, shared_network(kind), layout)
    return directory
