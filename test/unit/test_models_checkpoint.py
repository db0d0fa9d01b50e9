"""Checkpoints load completely or are refused with a sentence; loading never runs code."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_policy_node import families
from vla_policy_node.checkpoints import layout
from vla_policy_node.checkpoints.fingerprint import fingerprint
from vla_policy_node.checkpoints.statistics import read_statistics
from vla_policy_node.families import config_of, create_network
from vla_policy_node.runtime import loading, saving
from vla_policy_node.runtime.small import create_small_checkpoint

PUBLIC_LAYOUT = Path(__file__).parents[1] / 'data' / 'oft_tiny' / 'checkpoint'


@pytest.fixture
def directory(tmp_path):
    copy = tmp_path / 'checkpoint'
    shutil.copytree(PUBLIC_LAYOUT, copy)
    return copy


def load(directory):
    config = config_of(layout.read_json(directory, 'config.json'))
    return loading.load_model(directory, config, 'cpu', 'float32')


def test_public_sizes_add_up_to_the_public_checkpoint():
    """7,541,237,184 parameters are stored; what the forward pass never uses is not built."""
    with torch.device('meta'):
        model = create_network(config_of({'vision_backbone_id': 'dinosiglip-vit-so-224px'}))
    count = {name: sum(p.numel() for p in m.parameters()) for name, m in model.named_children()}
    dino_block = 4 * 1024**2 + 4 * 1024 + 2 * 4096 * 1024 + 4096 + 1024 + 6 * 1024
    siglip_block = 4 * 1152**2 + 4 * 1152 + 2 * 4304 * 1152 + 4304 + 1152 + 4 * 1152
    unused_vision = dino_block + 2 * 1024 + siglip_block + 2 * 1152 + 15_238_352
    assert count['vision_backbone'] == 303_230_976 + 427_680_704 - unused_vision
    assert count['projector'] == 71_385_600
    assert count['language_model'] == 6_738_939_904 - 32064 * 4096
    assert count['proprio_projector'] == 16_818_176
    assert count['action_head'] == 151_117_831


def test_saved_weights_load_again(directory, tmp_path):
    model = load(directory)
    for path in [*directory.glob('model*'), *directory.glob('*.pt')]:
        path.unlink()
    saving.save_model(directory, model, step=7)
    assert (directory / 'action_head--7_checkpoint.safetensors').is_file()
    again = load(directory)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_small_checkpoint_is_the_same_bytes_for_the_same_seed(tmp_path):
    first, second, other = (
        create_small_checkpoint(tmp_path / name, seed)
        for name, seed in (('a', 0), ('b', 0), ('c', 1))
    )
    for path in sorted(first.iterdir()):
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name
    assert fingerprint(first) == fingerprint(second)
    assert fingerprint(first) != fingerprint(other)


def test_small_checkpoint_says_that_it_is_untrained(tmp_path):
    config = config_of(
        layout.read_json(create_small_checkpoint(tmp_path / 'small'), 'config.json')
    )
    assert not config.trained
    assert config_of(layout.read_json(PUBLIC_LAYOUT, 'config.json')).trained


def test_small_tokenizer_knows_every_instruction(tmp_path):
    directory = create_small_checkpoint(tmp_path / 'small')
    config = config_of(layout.read_json(directory, 'config.json'))
    encoder = families.of(config).load_prompt(directory, config)
    for instruction in ('Pick up the alphabet soup and place it in the basket', 'zwölf ☂ Kisten'):
        ids = encoder.encode(instruction)
        assert (ids[0], ids[-1]) == (config.token_ids.bos, config.token_ids.empty)
        assert 0 not in ids
        assert max(ids) < config.language_model.vocabulary
    assert len(encoder.encode('pick up the black bowl and place it on the plate')) < 32


@pytest.mark.parametrize(
    ('name', 'sentence'),
    [
        ('config.json', 'has no config.json'),
        ('model-00002-of-00003.safetensors', 'lacks .* tensors'),
        ('action_head--100_checkpoint.pt', 'must hold one file action_head.*found none'),
    ],
)
def test_a_missing_file_is_named(directory, name, sentence):
    (directory / name).unlink()
    with pytest.raises(ValueError, match=sentence):
        load(directory)


def test_two_heads_are_ambiguous(directory):
    head = directory / 'action_head--100_checkpoint.pt'
    shutil.copy(head, directory / 'action_head--200_checkpoint.pt')
    with pytest.raises(ValueError, match=r'found action_head--100.*action_head--200'):
        load(directory)


def test_weights_of_another_size_are_refused(directory):
    document = json.loads((directory / 'config.json').read_text())
    document['text_config']['intermediate_size'] = 96
    (directory / 'config.json').write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r'has shape .* config\.json asks for'):
        load(directory)


def test_an_unknown_backbone_is_refused(directory):
    with pytest.raises(ValueError, match="vision backbone 'clip'"):
        config_of({'vision_backbone_id': 'clip'})


def test_damaged_json_is_named(directory):
    (directory / 'config.json').write_text('{')
    with pytest.raises(ValueError, match=r'config\.json is not valid JSON'):
        load(directory)


@pytest.mark.parametrize(
    'name', ['model-00001-of-00003.safetensors', 'proprio_projector--100_checkpoint.pt']
)
def test_a_truncated_file_is_named(directory, name):
    content = (directory / name).read_bytes()
    (directory / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f'{name} cannot be read'):
        load(directory)


class RunsCode:
    def __reduce__(self):
        return (Path.touch, (Path('code_ran'),))


def test_a_pickle_with_code_is_not_run(directory, monkeypatch):
    monkeypatch.chdir(directory)
    with (directory / 'action_head--100_checkpoint.pt').open('wb') as stream:
        pickle.dump(RunsCode(), stream, protocol=2)
    with pytest.raises(ValueError, match='could run code'):
        load(directory)
    assert not (directory / 'code_ran').exists()


@pytest.mark.parametrize(
    ('device', 'dtype', 'sentence'),
    [
        ('cpu', 'int3', "dtype must be one of float32, bfloat16, int8, int4, float8, not 'int3'"),
        ('tpu9', 'float32', "no kind of device 'tpu9'"),
        ('meta', 'float32', "'meta' cannot run a policy"),
        ('cuda:99', 'float32', "'cuda:99' is not available here"),
    ],
)
def test_unknown_device_or_dtype(device, dtype, sentence):
    config = config_of(layout.read_json(PUBLIC_LAYOUT, 'config.json'))
    with pytest.raises(ValueError, match=sentence):
        loading.load_model(PUBLIC_LAYOUT, config, device, dtype)


def test_an_entry_that_is_not_there_is_named_with_its_file(tmp_path):
    (tmp_path / 'dataset_statistics.json').write_text('{"bridge": {"action": {"q01": []}}}')
    with pytest.raises(ValueError, match=r"statistics\.json has no entry 'bridge\.proprio'"):
        read_statistics(layout.read_json(tmp_path, 'dataset_statistics.json'))


def test_a_missing_entry_says_nothing_of_a_family(tmp_path):
    (tmp_path / 'config.json').write_text('{}')
    with pytest.raises(ValueError) as caught:
        layout.read_json(tmp_path, 'config.json')['norm_stats']
    assert str(caught.value).endswith("no entry 'norm_stats'; put the right file there.")


def test_a_damaged_tokenizer_is_refused_with_a_sentence(tmp_path):
    (tmp_path / 'tokenizer.json').write_text('{"version": "1.0"')
    config = config_of({'vision_backbone_id': 'dinosiglip-vit-so-224px'})
    with pytest.raises(ValueError, match=r'tokenizer\.json is not valid JSON'):
        families.of(config).load_prompt(tmp_path, config)


def test_an_unknown_statistics_key_lists_the_known_ones():
    document = {'libero_10': {}, 'libero_goal': {}}
    with pytest.raises(ValueError, match="no statistics 'bridge'; choose one of libero_10, lib"):
        read_statistics(document, 'bridge')
    with pytest.raises(ValueError, match='several data sets; choose one of libero_10, libero_go'):
        read_statistics(document)


def test_actions_survive_normalising_and_back():
    statistics = read_statistics(layout.read_json(PUBLIC_LAYOUT, 'dataset_statistics.json'))
    actions = np.random.default_rng(0).uniform(-2, 2, (8, 7))
    np.testing.assert_allclose(
        statistics.unnormalise_actions(statistics.normalise_actions(actions)), actions, atol=1e-12
    )
    assert statistics.unnormalise_actions(np.full(7, 0.3))[6] == 0.3


def test_proprio_outside_the_training_range_is_clipped():
    statistics = read_statistics(layout.read_json(PUBLIC_LAYOUT, 'dataset_statistics.json'))
    assert statistics.normalise_proprio(np.full(8, 100.0)).tolist() == [1.0] * 8
    assert statistics.normalise_proprio(np.full(8, -100.0)).tolist() == [-1.0] * 8
