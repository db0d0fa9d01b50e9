"""pi0 at a size for two CPU cores, with seeded random weights, in LeRobot's layout.

The names of tensors and files are those that LeRobot saves; `tiny_sizes.json` says how many heads
there are, which neither shapes nor LeRobot's config.json tell. It cannot do a task yet, and its
config.json says so (`"trained": false`), until a stage of training has written it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from vla_policy_node.checkpoints.processors import POSTPROCESSOR, PREPROCESSOR
from vla_policy_node.families import create_network
from vla_policy_node.families.pi0 import Pi0, Pi0Family
from vla_policy_node.families.pi0_config import Pi0Config
from vla_policy_node.families.pi0_files import SIZES, gemma
from vla_policy_node.nn.siglip import siglip_config
from vla_policy_node.nn.transformer import DecoderConfig
from vla_policy_node.runtime.saving import save_model
from vla_policy_node.runtime.small import (
    STATISTICS,
    VISION_ENCODER,
    WORDS,
    make_tokenizer,
)

SPECIAL_TOKENS = ('<pad>', '<eos>', '<bos>', '<unk>')  # as in PaliGemma
PROMPT_IDS = 48
# Of the expert, the published ratio is 1/2; ours has more to do with less.
EXPERT_SHARE = 2 / 3
_INNER = 'model.paligemma_with_expert.'
_PALIGEMMA = f'{_INNER}paligemma.model.'
_NAMES = {
    'vision': f'{_PALIGEMMA}vision_tower.vision_model.',
    'projector': f'{_PALIGEMMA}multi_modal_projector.linear.',
    'language_model': f'{_PALIGEMMA}language_model.',
    'expert': f'{_INNER}gemma_expert.model.',
    'heads': 'model.', 'time': 'model.action_time_mlp_',
    'words': f'{_PALIGEMMA}language_model.embed_tokens.weight',
}
_NORMALISED = {'VISUAL': 'IDENTITY', 'STATE': 'MEAN_STD', 'ACTION': 'MEAN_STD'}


def create_small_pi0(directory: Path, config: Mapping, seed: int = 0) -> Path:
    """Write the checkpoint into `directory` and return it; config: of `runtime.small`, its sizes.

    Same seed, same bytes on one kind of processor.
    """
    directory.mkdir(parents=True, exist_ok=True)
    sizes = small_pi0_config(config)
    _write(directory / 'config.json', {**document(sizes), 'trained': False})
    _write(directory / SIZES, {
        'vision': {'num_heads': sizes.vision.heads},
        **{part: {'num_heads': decoder.heads, 'num_kv_heads': decoder.key_heads}
           for part, decoder in (('paligemma', sizes.language_model),
                                 ('action_expert', sizes.expert))}})
    write_processors(directory)
    make_tokenizer(SPECIAL_TOKENS, '<bos>', f'{WORDS}\n').save(str(directory / 'tokenizer.json'))
    save_model(directory, _random_network(sizes, seed).bfloat16())
    return directory


def small_pi0_config(config: Mapping) -> Pi0Config:
    """Sizes of a pi0 in the proportions of a small OpenVLA-OFT; config: its config.json."""
    text, vision = config['text_config'], config['vision_tiny']['fused_featurizer']
    decoder = DecoderConfig(
        width=text['hidden_size'], layers=text['num_hidden_layers'],
        heads=text['num_attention_heads'], key_heads=text['num_attention_heads'],
        head_width=text['hidden_size'] // text['num_attention_heads'],
        mlp_width=text['intermediate_size'], vocabulary=text['vocab_size'])
    width = 8 * round(EXPERT_SHARE * decoder.width / 8)
    expert = replace(
        decoder, width=width, mlp_width=8 * round(decoder.mlp_width * width / decoder.width / 8),
        vocabulary=0)
    family = Pi0Family()
    start = family.config_of(document(None))
    return replace(
        start, language_model=gemma(decoder), expert=gemma(expert), names=_NAMES,
        vision=siglip_config(
            vision['embed_dim'], vision['feature_block'] + 1, vision['num_heads'],
            vision['mlp_hidden'], vision['patch_size'], vision['img_size']))


def document(sizes: Pi0Config | None) -> dict:
    """config.json as LeRobot writes it; None: of the small size."""
    side = VISION_ENCODER['img_size'] if sizes is None else sizes.image_px
    return {
        'type': 'pi0', 'n_obs_steps': 1,
        'input_features': {
            'observation.images.third_person': _feature('VISUAL', 3, side, side),
            'observation.images.wrist': _feature('VISUAL', 3, side, side),
            'observation.state': _feature('STATE', 8)},
        'output_features': {'action': _feature('ACTION', 7)},
        'paligemma_variant': 'gemma_2b', 'action_expert_variant': 'gemma_300m',
        'dtype': 'float32', 'chunk_size': 8, 'n_action_steps': 8,
        'max_state_dim': 32, 'max_action_dim': 32, 'num_inference_steps': 10,
        'use_relative_actions': False, 'image_resolution': [side, side],
        'normalization_mapping': _NORMALISED, 'tokenizer_max_length': PROMPT_IDS}


def write_processors(directory: Path) -> None:
    """LeRobot's processors, with statistics that only say how a table-top Panda moves."""
    normalised = {'eps': 1e-8, 'norm_map': _NORMALISED, 'features': {
        'observation.state': _feature('STATE', 8), 'action': _feature('ACTION', 7)}}
    tokens = {
        'max_length': PROMPT_IDS, 'task_key': 'task', 'padding_side': 'right',
        'padding': 'max_length', 'truncation': True, 'tokenizer_name': '.'}
    before = (
        ('rename_observations_processor', {'rename_map': {}}), ('to_batch_processor', {}),
        ('pi0_new_line_processor', {}), ('tokenizer_processor', tokens),
        ('device_processor', {'device': 'cpu', 'float_dtype': None}),
        ('relative_actions_processor',
         {'enabled': False, 'exclude_joints': ['gripper'], 'action_names': None}),
        ('normalizer_processor', normalised))
    after = (
        ('unnormalizer_processor', normalised),
        ('absolute_actions_processor', {'enabled': False}),
        ('device_processor', {'device': 'cpu', 'float_dtype': None}))
    tensors = {}
    for feature, part in (('observation.state', 'proprio'), ('action', 'action')):
        entry = next(iter(STATISTICS.values()))[part]
        low, high = (torch.tensor(entry[end]) for end in ('q01', 'q99'))
        tensors |= {f'{feature}.mean': (low + high) / 2, f'{feature}.std': (high - low) / 4}
    for name, steps in ((PREPROCESSOR, before), (POSTPROCESSOR, after)):
        stem, listed = name.removesuffix('.json'), []
        for index, (kind, settings) in enumerate(steps):
            listed.append({'registry_name': kind, 'config': settings})
            if kind.endswith('normalizer_processor'):
                listed[-1]['state_file'] = f'{stem}_step_{index}_{kind}.safetensors'
                save_file(tensors, directory / listed[-1]['state_file'])
        _write(directory / name, {'name': stem, 'steps': listed})


def _feature(kind: str, *shape: int) -> dict:
    return {'type': kind, 'shape': [*shape]}


def _write(path: Path, content: Mapping) -> None:
    path.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')


@torch.no_grad()
def _random_network(sizes: Pi0Config, seed: int) -> Pi0:
    """Weights that carry signals through at about unit size; see `runtime.small`."""
    generator = torch.Generator().manual_seed(seed)
    network = create_network(sizes)
    assert isinstance(network, Pi0)
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(
                module.weight, std=module.weight[0].numel()**-0.5, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.Linear):
            module.weight -= module.weight.mean(dim=1, keepdim=True)
    words = network.language_model
    nn.init.normal_(
        words.embed_tokens.weight, std=1 / words.config.embedding_scale, generator=generator)
    nn.init.normal_(network.vision.position_embedding.weight, std=0.5, generator=generator)
    for name, weight in network.named_parameters():
        if name.endswith('norm.weight') and 'layer_norm' not in name and 'vision' not in name:
            nn.init.zeros_(weight)  # Gemma multiplies with 1 + weight
    return network
