"""Small checkpoints in the layouts of the public ones, made from random weights.

Weights are those of a fresh module with as much noise on top, so that every part matters.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from vla_policy_node import families
from vla_policy_node.families import config_of, create_network, read_model_config
from vla_policy_node.runtime import loading, saving, small

CONFIG = {
    'model_type': 'openvla',
    'vision_tiny': {
        name: {
            'embed_dim': 24, 'feature_block': 1, 'num_heads': 2, 'mlp_hidden': 40,
            'patch_size': 14, 'img_size': 56, 'class_token': name == 'featurizer',
            'num_reg_tokens': 4 * (name == 'featurizer'), 'layer_scale': name == 'featurizer',
        }
        for name in ('featurizer', 'fused_featurizer')
    },
    'text_config': {
        'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 4,
        'intermediate_size': 48, 'vocab_size': small.VOCABULARY,
    },
    'n_action_bins': 64,
    'pad_to_multiple_of': 64,
    'tiny_token_ids': {'bos': 1, 'stop': 2, 'empty': 3, 'pad': 520},
}
# What makes a CogACT policy of these sizes, as public ones are: one camera and no proprio.
COGACT = {
    'dit': {'blocks': 2, 'width': 24, 'heads': 2}, 'chunk_length': 16,
    'cameras': 1, 'proprio': False, 'center_crop': False,
}


def make(directory: Path, head: str = 'l1', film: bool = False, **entries) -> Path:
    """Write a complete checkpoint; entries: added to its config.json."""
    small.create_small_checkpoint(directory, config={**small.CONFIG, **CONFIG})
    document = {**CONFIG, **entries}
    if head == 'cogact':  # of ours the files do not tell, config.json does
        document['head'] = head
    config = families.named(head).configure(config_of(document))
    if head == 'autoregressive':
        config = replace(with_inputs(config, 1, proprio=False), chunk_length=1)
    if film:
        config = replace(config, dino=replace(config.dino, language_width=32),
                         siglip=replace(config.siglip, language_width=32))
    for path in directory.glob('*.safetensors'):
        path.unlink()
    (directory / 'config.json').write_text(json.dumps(document))
    saving.save_model(directory, random_model(config), step=7)
    return directory


def with_inputs(config, cameras, proprio):
    """Sizes of a policy that looks at the first cameras, and is told the state or not."""
    state = config.spec.state if proprio else ()
    spec = replace(config.spec, cameras=config.spec.cameras[:cameras], state=state)
    return replace(config, spec=spec)


def random_model(config, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _random_model(config)


def _random_model(config):
    model = create_network(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) / parameter.shape[-1] ** 0.5
        model.projector.fc3.weight *= 20  # images count as much as words
        if hasattr(model.action_head, 'lm_head'):
            # Like a trained head: it answers with action tokens, and differently each time.
            end, bins = config.action_ids_end, config.action_bins
            scale = torch.zeros(len(model.action_head.lm_head.weight), 1)
            scale[end - bins : end] = 5
            model.action_head.lm_head.weight *= scale
    return model


def load(directory, dtype='float32'):
    config = read_model_config(directory)
    return loading.load_model(directory, config, 'cpu', dtype)


def shard(directory: Path, pieces: int, prefix: str = '') -> None:
    """Split model.safetensors into shards with an index, names behind a prefix."""
    tensors = load_file(directory / 'model.safetensors')
    names = sorted(tensors)
    index = {'metadata': {'total_size': 0}, 'weight_map': {}}
    for piece in range(pieces):
        name = f'model-{piece + 1:05}-of-{pieces:05}.safetensors'
        part = {prefix + n: tensors[n].clone() for n in names[piece::pieces]}
        save_file(part, directory / name)
        index['weight_map'] |= dict.fromkeys(part, name)
        index['metadata']['total_size'] += sum(t.numel() * t.element_size()
                                               for t in part.values())
    (directory / 'model.safetensors.index.json').write_text(json.dumps(index))
    (directory / 'model.safetensors').unlink()


def to_pt(directory: Path, part: str, prefix: str = 'module.', **save) -> Path:
    """Turn a part's safetensors into a `.pt` of fine-tuning on several GPUs."""
    (path,) = directory.glob(f'{part}--*.safetensors')
    state = {prefix + name: tensor for name, tensor in load_file(path).items()}
    path.unlink()
    torch.save(state, path.with_suffix('.pt'), **save)
    return path.with_suffix('.pt')


def to_cogact_release(directory: Path, target: Path) -> Path:
    """Write a CogACT checkpoint again, in the layout and the names of the public ones."""
    section_names = {
        'vision_backbone': lambda name: name.replace('fused_featurizer', 'siglip_featurizer')
        .replace('vision_backbone.featurizer', 'vision_backbone.dino_featurizer')
        .replace('scale_factor', 'gamma').removeprefix('vision_backbone.'),
        'projector': lambda name: f'projector.{2 * int(name[12]) - 2}{name[13:]}',
        'llm_backbone': lambda name: name.replace('language_model.', 'llm.', 1),
        'action_model': lambda name: name,
    }
    sections = {section: {} for section in section_names}
    (head,) = directory.glob('action_head--*')
    for name, tensor in {**load_file(directory / 'model.safetensors'), **load_file(head)}.items():
        section = {'language_model': 'llm_backbone', 'net': 'action_model'}.get(
            name.split('.')[0], name.split('.')[0])
        sections[section][section_names[section](name)] = tensor.clone()
    # What the authors' files hold besides, and nobody uses.
    width = CONFIG['text_config']['hidden_size']
    sections['llm_backbone']['llm.lm_head.weight'] = torch.zeros(4, width)
    sections['action_model']['net.history_embedder.linear.weight'] = torch.zeros(24, 7)
    sections['ema_diffusion'] = {'net.positional_embedding': torch.zeros(17, 24)}
    (target / 'checkpoints').mkdir(parents=True)
    torch.save({'model': sections}, target / 'checkpoints' / 'CogACT-Tiny.pt')
    for name in ('tokenizer.json', 'dataset_statistics.json'):
        shutil.copyfile(directory / name, target / name)
    document = {
        'vla': {'base_vlm': 'prism-dinosiglip-224px+7b'}, 'dit': {'heads': 2},
        **{key: CONFIG[key] for key in ('vision_tiny', 'text_config', 'tiny_token_ids')}}
    (target / 'config.json').write_text(json.dumps(document))
    return target


def copy(directory: Path, target: Path) -> Path:
    shutil.copytree(directory, target)
    return target
