"""LoRA adapters: merged as the peft library does, inside of files or beside them, or refused."""

import json
import os
import re
import shutil

import checkpoint_variants as variants
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vla_policy_node.checkpoints.fingerprint import fingerprint
from vla_policy_node.checkpoints.hub import find_checkpoint
from vla_policy_node.families import read_model_config
from vla_policy_node.policy.local import LocalPolicy

CONFIG, MODEL, ADAPTER = 'adapter_config.json', 'model.safetensors', 'adapter_model.safetensors'
TARGETS = ('q_proj', 'v_proj', 'down_proj', 'fc1', 'fc2', 'qkv')
QUERY = 'language_model.model.layers.0.self_attn.q_proj'


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """A complete checkpoint, not to be changed."""
    return variants.make(tmp_path_factory.mktemp('adapters') / 'base')


def modules_of(tensors):
    """Layers under the names of the file, as peft wants to see them."""
    tree = nn.Module()
    for name, tensor in tensors.items():
        *path, layer, kind = name.split('.')
        at = tree
        for part in path:
            if part not in dict(at.named_children()):
                at.add_module(part, nn.Module())
            at = getattr(at, part)
        if layer not in dict(at.named_children()):
            weight = tensors.get('.'.join([*path, layer, 'weight']), tensor)
            bias = '.'.join([*path, layer, 'bias']) in tensors
            at.add_module(layer, _layer(layer, weight, bias))
        getattr(at, layer).register_parameter(kind, nn.Parameter(tensor.clone()))
    return tree


def _layer(name, weight, bias):
    if name == 'embed_tokens':
        return nn.Embedding(*weight.shape)
    if weight.ndim == 4:
        return nn.Conv2d(weight.shape[1], len(weight), weight.shape[2:], weight.shape[2:])
    if weight.ndim == 2:
        return nn.Linear(weight.shape[1], len(weight), bias)
    return nn.Module()


def trained(base, directory, seed=0, dtype=torch.float32, **settings):
    """Write an adapter with the peft library; returns the tensors that this makes of the files."""
    from peft import LoraConfig, PeftModel, get_peft_model

    tensors = load_file(base / MODEL)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(modules_of(tensors), LoraConfig(
            **{'r': 4, 'lora_alpha': 6, 'target_modules': [*TARGETS], **settings}))
        for name, parameter in model.named_parameters():
            if 'lora_' in name or 'modules_to_save' in name:
                parameter.data = torch.randn_like(parameter).to(dtype)
        model.save_pretrained(directory)
    edit(directory, base_model_name_or_path=str(base))
    return PeftModel.from_pretrained(modules_of(tensors), directory).merge_and_unload(
    ).state_dict()


def edit(directory, **entries):
    path = directory / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def change_tensors(directory, change):
    tensors = load_file(directory / ADAPTER)
    change(tensors)
    save_file(tensors, directory / ADAPTER)


def assert_merged(directory, base, expected, tmp_path):
    merged = variants.copy(base, tmp_path / 'merged')
    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, merged / MODEL)
    ours, theirs = (variants.load(find_checkpoint(d)).state_dict() for d in (directory, merged))
    plain = variants.load(base).state_dict()
    changed = [name for name in ours if not torch.equal(ours[name], plain[name])]
    assert changed
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-5)
    return changed


@pytest.mark.parametrize('settings', [
    {}, {'use_rslora': True}, {'r': 3, 'init_lora_weights': 'gaussian'},
    {'rank_pattern': {'q_proj': 2}, 'alpha_pattern': {'q_proj': 5, 'layers.1.mlp.down_proj': 3}},
    {'target_modules': ['embed_tokens', 'proj', 'fc3'], 'modules_to_save': ['k_proj']},
    {'bias': 'lora_only'}, {'dtype': torch.bfloat16},
], ids=str)
def test_an_adapter_is_merged_as_peft_merges_it(base, tmp_path, settings):
    expected = trained(base, tmp_path / 'adapter', **settings)
    changed = assert_merged(tmp_path / 'adapter', base, expected, tmp_path)
    if 'modules_to_save' in settings:
        assert {'language_model.embed_tokens.weight', 'projector.fc3.weight',
                'vision_backbone.featurizer.patch_embed.proj.weight',
                'language_model.layers.1.self_attn.k_proj.weight'} <= {*changed}


def test_what_openvla_oft_leaves_without_merging_runs(base, tmp_path):
    """Head, state and statistics of its own beside `lora_adapter/`; the rest is the base's."""
    run = tmp_path / 'run--10000_chkpt'
    expected = trained(base, run / 'lora_adapter')
    for name in ('action_head--7_checkpoint.safetensors', 'dataset_statistics.json',
                 'proprio_projector--7_checkpoint.safetensors'):
        shutil.copyfile(base / name, run / name)
    assert_merged(run, base, expected, tmp_path)
    policy = LocalPolicy.load(run)
    assert policy.description.checkpoint == str(run)
    assert fingerprint(run) not in (fingerprint(base), fingerprint(tmp_path / 'merged'))
    assert find_checkpoint(run / 'lora_adapter') == run


def test_whose_statistics_an_adapter_uses_is_said(base, made, tmp_path):
    def said(directory):
        return [str(one) for one in LocalPolicy.load(directory).taken if one.name == 'data']

    adapter = variants.copy(made, tmp_path / 'adapter')
    (sentence,) = said(adapter)
    assert sentence.startswith(f'Guessed data: that of the base model, {base} (')
    shutil.copyfile(base / 'dataset_statistics.json', adapter / 'dataset_statistics.json')
    assert not said(adapter)


def test_an_adapter_in_the_older_format_is_read(base, tmp_path):
    expected = trained(base, tmp_path / 'adapter')
    path = tmp_path / 'adapter' / ADAPTER
    torch.save(load_file(path), path.with_suffix('.bin'))
    path.unlink()
    assert_merged(tmp_path / 'adapter', base, expected, tmp_path)


def test_the_base_may_be_named_relative_to_the_adapter(base, tmp_path):
    variants.copy(base, tmp_path / 'base')
    expected = trained(base, tmp_path / 'runs' / 'adapter')
    edit(tmp_path / 'runs' / 'adapter', base_model_name_or_path='../../base')
    assert_merged(tmp_path / 'runs', base, expected, tmp_path)  # one level down, besides


def test_a_base_of_the_hub_is_looked_up_there(base, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        'huggingface_hub.snapshot_download',
        lambda repository, revision, allow_patterns: asked.append((repository, revision)) or (
            str(base)))
    expected = trained(base, tmp_path / 'adapter')
    edit(tmp_path / 'adapter', base_model_name_or_path='openvla/openvla-7b', revision='abc')
    assert_merged(tmp_path / 'adapter', base, expected, tmp_path)
    assert asked == [('openvla/openvla-7b', 'abc')]  # once


def test_an_adapter_of_the_hub_is_downloaded_where_there_is_no_model(base, tmp_path, monkeypatch):
    """In repositories with a model, `lora_adapter/` is merged and hundreds of MB for nobody."""
    run, asked = tmp_path / 'run', []
    trained(base, run / 'lora_adapter')

    def snapshot_download(repository, revision, allow_patterns):
        asked.append(allow_patterns)
        return str(run)

    monkeypatch.setattr('huggingface_hub.snapshot_download', snapshot_download)
    assert find_checkpoint('owner/run') == run
    assert ['lora_adapter/*.safetensors' in patterns for patterns in asked] == [False, True]
    shutil.copyfile(base / MODEL, run / MODEL)
    find_checkpoint('owner/run')
    assert len(asked) == 3


def test_a_fingerprint_is_the_same_wherever_the_base_lies(base, made, tmp_path, monkeypatch):
    prints = set()
    for name in 'az':  # paths that are sorted before and behind the adapter's
        cached = variants.copy(base, tmp_path / name)
        monkeypatch.setattr(
            'huggingface_hub.snapshot_download', lambda *_, cached=cached, **__: str(cached))
        adapter = variants.copy(made, tmp_path / f'm{name}')
        edit(adapter, base_model_name_or_path='openvla/openvla-7b')
        prints.add(fingerprint(adapter))
    assert len(prints) == 1


# --- inside of the files ---


def wrapped(base, directory, expected, adapter, name=str, entry='default'):
    """The checkpoint as saved while the adapter is still round its layers."""
    variants.copy(base, directory)
    pieces = load_file(adapter / ADAPTER)
    whole = load_file(base / MODEL)
    tensors = {}
    for key, tensor in whole.items():
        stem, _, kind = key.rpartition('.')
        if f'base_model.model.{stem}.lora_A.weight' in pieces:
            key = f'{stem}.base_layer.{kind}'
        tensors[name(key)] = tensor
    for key, tensor in pieces.items():
        key = key.removeprefix('base_model.model.').removesuffix('weight')
        tensors[name(f'{key}{entry}.weight')] = tensor
    save_file(tensors, directory / MODEL)
    return directory


@pytest.mark.parametrize('name', [
    str, 'base_model.model.{}'.format, 'module._orig_mod.base_model.model.{}'.format,
    lambda key: key.replace('.layers.', '._fsdp_wrapped_module.layers.')], ids=range(4))
def test_adapters_inside_of_the_model_are_merged_whatever_wraps_its_names(base, tmp_path, name):
    expected = trained(base, tmp_path / 'adapter')
    directory = wrapped(base, tmp_path / 'wrapped', expected, tmp_path / 'adapter', name, 'mine')
    shutil.copyfile(tmp_path / 'adapter' / CONFIG, directory / CONFIG)
    assert_merged(directory, base, expected, tmp_path)
    variants.shard(directory, 3)
    ours = variants.load(directory).state_dict()
    for key, tensor in variants.load(tmp_path / 'merged').state_dict().items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-5, atol=1e-5)


def test_without_a_word_of_how_much_they_count_they_are_refused(base, tmp_path):
    expected = trained(base, tmp_path / 'adapter')
    wrapped(base, tmp_path / 'wrapped', expected, tmp_path / 'adapter')
    assert 'no adapter_config.json that says how much' in refusal_of(tmp_path / 'wrapped')


def test_one_layer_without_its_adapter_is_no_whole_file(base, tmp_path):
    expected = trained(base, tmp_path / 'adapter')
    directory = wrapped(base, tmp_path / 'wrapped', expected, tmp_path / 'adapter')
    tensors = load_file(directory / MODEL)
    for piece in 'AB':
        del tensors[f'{QUERY}.lora_{piece}.default.weight']
    save_file(tensors, directory / MODEL)
    assert f'none of {QUERY}.weight; the file is damaged' in refusal_of(directory)


def test_an_adapter_whose_weight_is_gone_is_no_whole_file(base, tmp_path):
    expected = trained(base, tmp_path / 'adapter')
    directory = wrapped(base, tmp_path / 'wrapped', expected, tmp_path / 'adapter')
    tensors = load_file(directory / MODEL)
    del tensors[f'{QUERY}.base_layer.weight']
    save_file(tensors, directory / MODEL)
    assert f'around {QUERY}.weight that does not fit its weight' in refusal_of(directory)


@pytest.mark.parametrize('prefix', [
    'module.', '_orig_mod.', 'module._orig_mod.', '_fsdp_wrapped_module.', '_forward_module.',
    'base_model.model.'])
def test_names_of_wrappers_make_no_difference(base, tmp_path, prefix):
    directory = variants.copy(base, tmp_path / 'wrapped')
    for part in (MODEL, 'action_head--7_checkpoint.safetensors'):
        tensors = load_file(directory / part)
        save_file({prefix + name: tensor for name, tensor in tensors.items()}, directory / part)
    ours, plain = (variants.load(d).state_dict() for d in (directory, base))
    assert all(torch.equal(tensor, plain[name]) for name, tensor in ours.items())


def test_what_an_unknown_wrapper_made_of_names_is_said(base, tmp_path):
    directory = variants.copy(base, tmp_path / 'wrapped')
    tensors = load_file(directory / MODEL)
    save_file({f'policy.{name}': tensor for name, tensor in tensors.items()}, directory / MODEL)
    assert re.search(r'first (\S+); model.safetensors calls it policy\.\S+, as something round',
                     refusal_of(directory))


@pytest.mark.parametrize(('name', 'sentence'), [
    (f'module.{QUERY}.weight', f'holds {QUERY}.weight twice, as '),
    ('_fsdp_wrapped_module._flat_param', 'as FSDP keeps them .*FULL_STATE_DICT'),
    (f'{QUERY}.lora_magnitude_vector.default.weight', 'has a DoRA adapter .* merge_and_unload'),
    (f'{QUERY}.lora_B.default.bias', r'has .*lora_B\.default\.bias, which is not merged'),
])
def test_what_cannot_be_put_together_is_named(base, tmp_path, name, sentence):
    directory = variants.copy(base, tmp_path / 'strange')
    tensors = load_file(directory / MODEL)
    save_file({**tensors, name: torch.zeros(32, 32)}, directory / MODEL)
    assert re.search(sentence, refusal_of(directory))


# --- what is refused ---


@pytest.fixture(scope='module')
def made(base, tmp_path_factory):
    directory = tmp_path_factory.mktemp('made') / 'adapter'
    trained(base, directory)
    return directory


@pytest.fixture
def adapter(made, tmp_path):
    return variants.copy(made, tmp_path / 'adapter')


def refusal_of(directory):
    with pytest.raises(ValueError) as caught:
        LocalPolicy.load(directory, methods=())
    text = str(caught.value)
    assert text.endswith(('.', '?')) and text.isprintable() and len(text) < 900, text
    return text


@pytest.mark.parametrize(('entries', 'sentence'), [
    ({'peft_type': 'VERA'}, 'an adapter of the kind VERA, which is not merged here'),
    ({'peft_type': 7}, 'peft_type 7; it must be a string'),
    ({'use_dora': True}, 'a DoRA adapter'),
    ({'fan_in_fan_out': True}, 'transposed weights'),
    ({'init_lora_weights': 'pissa'}, 'init_lora_weights pissa, which changes the base as well'),
    ({'init_lora_weights': ['gaussian']}, 'which changes the base as well'),
    ({'use_bdlora': {'a': 1}}, 'an adapter with use_bdlora'),
    ({'target_parameters': ['experts']}, 'an adapter with target_parameters'),
    ({'some_later_idea': 0.5}, 'an adapter with some_later_idea'),
    ({'lora_alpha': None}, "no entry 'lora_alpha'"),
    ({'lora_alpha': 1e300}, 'lora_alpha 1e[+]300; it must be a number'),
    ({'alpha_pattern': {'(a+)+$': 1}}, r'alpha_pattern.*it must be under the name of a module'),
    ({'use_rslora': 'yes'}, "use_rslora 'yes'; it must be true or false"),
    ({'base_model_name_or_path': None}, 'LoRA adapter without the model it belongs to; write'),
    ({'base_model_name_or_path': '/no/such/model'}, '/no/such/model has no config.json.*; write'),
    ({'base_model_name_or_path': 'a\0b'}, 'no name of a checkpoint.*; write the directory'),
    ({'base_model_name_or_path': 'x' * 5000}, 'without the model it belongs to.*; write'),
    ({'base_model_name_or_path': '../adapter'}, 'is an adapter itself'),
    ({'base_model_name_or_path': 'https://example.com/x'}, 'an address from which nothing'),
])
def test_a_configuration_that_means_something_else_is_refused(adapter, entries, sentence):
    edit(adapter, **entries)
    assert re.search(sentence, refusal_of(adapter)), refusal_of(adapter)


@pytest.mark.parametrize(('change', 'sentence'), [
    (lambda t: t.pop(f'base_model.model.{QUERY}.lora_B.weight'), 'does not fit its weight'),
    (lambda t: t.update({f'base_model.model.{QUERY}.lora_A.weight': torch.ones(9, 32)}),
     f'an adapter around {QUERY}.weight that does not fit'),
    (lambda t: t.update({f'base_model.model.{QUERY}.lora_A.weight': torch.tensor(1.0)}),
     'does not fit'),
    (lambda t: t.update({f'base_model.model.{QUERY}.lora_A.weight':
                         torch.ones(4, 32, dtype=torch.int8)}),
     r'stores .*lora_A\.weight as int8'),
    (lambda t: t.update({'base_model.model.model.x.lora_A.weight': torch.ones(4, 32)}),
     'changes model.x.weight, which the base model does not have; it belongs to another'),
    (lambda t: t.update({f'base_model.model.{QUERY}.lora_A.two.weight': torch.ones(4, 32)}),
     'more than one adapter of'),
])
def test_pieces_that_do_not_fit_are_named(adapter, change, sentence):
    change_tensors(adapter, change)
    assert re.search(sentence, refusal_of(adapter))


def test_an_adapter_of_an_adapter_is_refused(adapter, tmp_path):
    other = variants.copy(adapter, tmp_path / 'other')
    edit(adapter, base_model_name_or_path=str(other))
    edit(other, base_model_name_or_path=str(adapter))
    assert f'{other} is an adapter itself' in refusal_of(adapter)


def test_a_file_without_an_adapter_is_not_taken_for_one(adapter):
    save_file({}, adapter / ADAPTER)
    assert 'holds no adapter; download it again' in refusal_of(adapter)


@pytest.mark.parametrize('name', [CONFIG, ADAPTER])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(adapter, name):
    (adapter / name).unlink()
    os.mkfifo(adapter / name)
    assert 'is a named pipe instead of a file' in refusal_of(adapter)


def test_tensors_that_were_not_downloaded_are_named(adapter):
    (adapter / ADAPTER).unlink()
    assert 'no adapter_model.safetensors; the download' in refusal_of(adapter)


def test_a_whole_model_with_an_adapter_beside_it_has_to_say_which_is_meant(base, adapter):
    for name in (MODEL, 'config.json'):
        shutil.copyfile(base / name, adapter / name)
    assert 'nothing says whether it is merged already' in refusal_of(adapter)
    (adapter / CONFIG).rename(adapter / 'without')
    assert 'nothing says whether it is merged already' in refusal_of(adapter)
    (adapter / 'without').rename(adapter / CONFIG)
    (adapter / 'lora_adapter').mkdir()
    for name in (CONFIG, ADAPTER):
        (adapter / name).rename(adapter / 'lora_adapter' / name)
    with pytest.raises(ValueError, match='has no dataset_statistics'):
        LocalPolicy.load(adapter)
    assert read_model_config(adapter)
