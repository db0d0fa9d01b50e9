"""What people name as a checkpoint: a run, the hub's cache, an address, a clone without LFS."""

import json
import logging
import re
import shutil
import time

import checkpoint_variants as variants
import pytest
import torch

from vla_policy_node.checkpoints import inside
from vla_policy_node.checkpoints.hub import find_checkpoint
from vla_policy_node.families import read_model_config
from vla_policy_node.policy.local import LocalPolicy

COMMIT = '4f2c' * 10


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A complete checkpoint, not to be changed."""
    return variants.make(tmp_path_factory.mktemp('places') / 'policy')


@pytest.fixture
def copied(made, tmp_path):
    return variants.copy(made, tmp_path / 'policy')


def sentence_of(name):
    start = time.process_time()
    with pytest.raises(ValueError) as caught:
        LocalPolicy.load(name, methods=())
    assert time.process_time() - start < 5
    text = str(caught.value)
    assert text.endswith(('.', '?')) and text.isprintable() and len(text) < 600, text
    return text


# --- files that stand for others ---

POINTER = (
    'version https://git-lfs.github.com/spec/v1\n'
    'oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n'
    'size 4925122448\n')
FILES = ('model.safetensors', 'tokenizer.json', 'config.json', 'preprocessor_config.json',
         'dataset_statistics.json', 'action_head--7_checkpoint.safetensors',
         'proprio_projector--7_checkpoint.safetensors')


@pytest.mark.parametrize('name', FILES)
def test_a_git_lfs_pointer_says_how_to_get_the_file(copied, name):
    (copied / name).write_text(POINTER)
    assert re.search(
        rf'{re.escape(name)} is a Git LFS pointer and not the file itself; run `git lfs pull`',
        sentence_of(copied))


@pytest.mark.parametrize(('content', 'sentence'), [
    ('version https://hawser.github.com/spec/v1\n', 'Git LFS pointer'),
    ('/annex/objects/SHA256E-s49--aa.safetensors\n', 'pointer of git-annex.*git annex get'),
    ('\n<!DOCTYPE html>\n<html>' + ' ' * 10000, 'a web page.*/resolve/'),
])
def test_so_does_whatever_else_stands_for_a_file(copied, content, sentence):
    (copied / 'model.safetensors').write_text(content)
    assert re.search(sentence, sentence_of(copied))


@pytest.mark.parametrize('name', FILES)
def test_a_link_whose_file_was_not_copied_says_so(copied, name):
    (copied / name).unlink()
    (copied / name).symlink_to('../../blobs/4d7a21')
    assert re.search(rf'{re.escape(name)} is a link to a file that is not there; .*cp -rL',
                     sentence_of(copied))


def test_a_tokenizer_of_sentencepiece_alone_says_what_to_do(copied):
    (copied / 'tokenizer.json').rename(copied / 'tokenizer.model')
    assert re.search(r'only tokenizer\.model, which is not read; copy the tokenizer\.json of '
                     r'openvla/openvla-7b .*save_pretrained', sentence_of(copied))


@pytest.mark.parametrize(('name', 'sentence'), [
    ('pytorch_model-00001-of-00002.bin', 'only pytorch_model-.* save_pretrained'),
    ('__0_0.distcp', 'shards of FSDP'), ('global_step100', 'DeepSpeed .*zero_to_fp32'),
    ('openvla.Q4_K_M.gguf', 'only openvla.Q4_K_M.gguf, which is not read; take the files'),
])
def test_weights_in_another_format_are_named_with_what_to_do(copied, name, sentence):
    (copied / 'model.safetensors').rename(copied / name)
    assert re.search(sentence, sentence_of(copied))


def test_thousands_of_weight_files_are_not_opened(copied):
    for index in range(300):
        (copied / f'model-{index}.safetensors').touch()
    assert '301 files model*.safetensors, and no model has more than 256' in sentence_of(copied)


def test_a_checkpoint_of_training_in_the_prismatic_code_base_is_named(copied):
    (copied / 'model.safetensors').unlink()
    (copied / 'checkpoints').mkdir()
    weights = {'vision_backbone': {}, 'llm_backbone': {}, 'projector': {}}
    torch.save({'model': weights}, copied / 'checkpoints' / 'step-005000-loss=0.1.pt')
    assert 'convert_openvla_weights_to_hf.py' in sentence_of(copied)


# --- a run whose checkpoint is one level down ---


def test_the_only_checkpoint_of_a_run_is_taken_and_said(made, tmp_path, caplog):
    run = tmp_path / 'run'
    found = variants.copy(made, run / 'checkpoint-500')
    (run / 'logs').mkdir()
    (run / 'trainer_state.json').write_text('{}')
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(run) == found
    assert f'{run} is no checkpoint itself; taking the one in {found}.' in caplog.text
    assert LocalPolicy.load(run).description.checkpoint == str(found)


@pytest.mark.parametrize('named', ['', 'checkpoints', 'checkpoints/last'])
def test_the_checkpoint_of_a_run_of_lerobot_is_found_from_all_folders_above(
        made, tmp_path, named):
    variants.copy(made, tmp_path / 'run' / 'checkpoints' / '005000' / 'pretrained_model')
    (tmp_path / 'run' / 'checkpoints' / '005000' / 'training_state').mkdir()
    (tmp_path / 'run' / 'checkpoints' / 'last').symlink_to('005000')
    found = find_checkpoint(tmp_path / 'run' / named)
    assert found.name == 'pretrained_model' and (found / 'config.json').is_file()
    variants.copy(made, tmp_path / 'run' / 'checkpoints' / '010000' / 'pretrained_model')
    if named != 'checkpoints/last':
        assert 'holds 2: 010000, last; name one' in sentence_of(tmp_path / 'run' / named)


def test_of_several_one_has_to_be_named(made, tmp_path):
    for step in (500, 1000):
        variants.copy(made, tmp_path / 'run' / f'checkpoint-{step}')
    assert 'holds 2: checkpoint-1000, checkpoint-500; name one' in sentence_of(tmp_path / 'run')


def test_a_link_to_the_last_of_them_is_no_second_one(made, tmp_path):
    found = variants.copy(made, tmp_path / 'run' / 'checkpoint-500')
    (tmp_path / 'run' / 'last').symlink_to('checkpoint-500')
    assert find_checkpoint(tmp_path / 'run').resolve() == found


def test_a_checkpoint_is_taken_as_it_is_whatever_lies_in_it(made, copied):
    variants.copy(made, copied / 'backup')
    assert find_checkpoint(copied) == copied


def test_what_links_lead_to_outside_and_in_circles_is_left_alone(made, tmp_path):
    run = tmp_path / 'run'
    run.mkdir()
    (run / 'elsewhere').symlink_to(made)
    (run / 'circle').symlink_to('circle')
    (run / 'itself').symlink_to('.')
    assert find_checkpoint(run) == run
    assert 'has no config.json' in sentence_of(run)


def test_thousands_of_entries_are_not_all_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(inside, 'MOST_ENTRIES', 20)
    for index in range(60):
        (tmp_path / f'{index}').mkdir()
    seen = []
    monkeypatch.setattr(inside, '_has_weights', lambda path: seen.append(path))
    for index in range(60):
        (tmp_path / f'{index}' / 'config.json').touch()
    assert find_checkpoint(tmp_path) == tmp_path
    assert len(seen) == 21


# --- a language model that is spoken to in another way ---


def prompt_of(directory):
    return LocalPolicy.load(directory, methods=()).description.prompt_template


@pytest.mark.parametrize('entry', [
    {'llm_backbone_id': 'vicuna-v15-7b'}, {'hf_llm_id': 'lmsys/vicuna-7b-v1.5'}])
def test_a_vicuna_is_known_by_what_the_configuration_says(copied, entry):
    assert prompt_of(copied).startswith('In: ')
    document = json.loads((copied / 'config.json').read_text())
    (copied / 'config.json').write_text(json.dumps(document | entry))
    assert prompt_of(copied).endswith('take to {instruction}? ASSISTANT:')


def test_a_vicuna_is_known_by_the_public_name(made, tmp_path):
    directory = variants.copy(made, tmp_path / 'openvla-v01-7b-finetuned')
    assert prompt_of(directory).endswith('ASSISTANT:')
    ids = LocalPolicy.load(directory, methods=()).inputs.encode_prompt('pick up the bowl')
    assert ids[0] == 1 and ids[-1] == 3  # BOS and the empty token, as behind any other prompt
    assert prompt_of(variants.copy(made, directory / 'mine')).startswith('In: ')


def test_one_vision_encoder_is_refused_by_name(copied):
    document = json.loads((copied / 'config.json').read_text())
    del document['vision_tiny']
    document['vision_backbone_id'] = 'siglip-vit-so400m'
    (copied / 'config.json').write_text(json.dumps(document))
    assert re.search("'siglip-vit-so400m'.*no policy with one vision encoder, as OpenVLA v0.1",
                     sentence_of(copied))


# --- the cache of the hub ---


@pytest.fixture
def cache(made, tmp_path):
    """A model as the hub's library keeps it: files under blobs/, and links to them."""
    root = tmp_path / 'hub' / 'models--owner--some-policy'
    snapshot, blobs = root / 'snapshots' / COMMIT, root / 'blobs'
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(made.iterdir())):
        shutil.copyfile(path, blobs / f'{number:064x}')
        (snapshot / path.name).symlink_to(f'../../blobs/{number:064x}')
    (root / 'refs').mkdir()
    (root / 'refs' / 'main').write_text(COMMIT)
    return root


def test_the_root_of_a_cached_model_is_followed_to_its_snapshot(cache, made):
    (cache / 'snapshots' / ('0' * 40)).mkdir()  # an older one
    assert find_checkpoint(cache) == cache / 'snapshots' / COMMIT
    variants.load(find_checkpoint(cache))
    assert read_model_config(find_checkpoint(cache)) == read_model_config(made)


def test_so_is_a_cache_with_one_model(cache):
    assert find_checkpoint(cache.parent) == cache / 'snapshots' / COMMIT
    assert find_checkpoint(cache / 'snapshots') == cache / 'snapshots' / COMMIT


def test_without_a_reference_the_only_snapshot_is_meant(cache):
    (cache / 'refs' / 'main').unlink()
    assert find_checkpoint(cache) == cache / 'snapshots' / COMMIT
    (cache / 'snapshots' / ('0' * 40)).mkdir()
    assert 'no refs/main and 2 snapshots; name one' in sentence_of(cache)


@pytest.mark.parametrize(('reference', 'sentence'), [
    ('../../../..', 'names no commit'), ('a' * 300, 'never has more than'),
    ('', 'names no commit'), ('b' * 40, 'has no snapshots/bbbb.*download it again'),
])
def test_a_reference_leads_nowhere_else(cache, reference, sentence):
    (cache / 'refs' / 'main').write_text(reference)
    assert re.search(sentence, sentence_of(cache))


@pytest.mark.parametrize('place', ['config.json', ''])
def test_a_cached_model_has_no_links_that_leave_it(cache, made, place):
    path = cache / 'snapshots' / COMMIT / place
    if place:
        path.unlink()
    else:
        shutil.rmtree(path)
    path.symlink_to(made / place)
    assert 'is a link to something outside of' in sentence_of(cache)


# --- addresses ---


@pytest.mark.parametrize(('address', 'name', 'revision'), [
    ('https://huggingface.co/openvla/openvla-7b', 'openvla/openvla-7b', None),
    ('https://huggingface.co/openvla/openvla-7b/', 'openvla/openvla-7b', None),
    ('http://www.huggingface.co/openvla/openvla-7b/tree/main', 'openvla/openvla-7b', None),
    ('huggingface.co/openvla/openvla-7b/tree/v1.0', 'openvla/openvla-7b', 'v1.0'),
    ('https://hf.co/openvla/openvla-7b?library=transformers', 'openvla/openvla-7b', None),
    ('https://huggingface.co/a/b/blob/d40628f/config.json', 'a/b', 'd40628f'),
    ('https://huggingface.co/a/b/tree/refs%2Fpr%2F3', 'a/b', 'refs/pr/3'),
    ('git@hf.co:a/b.git', 'a/b', None), ('hf://a/b@v2', 'a/b', 'v2'),
])
def test_an_address_of_the_hub_is_taken_for_the_id_in_it(
        monkeypatch, tmp_path, address, name, revision):
    asked = []
    monkeypatch.setattr(
        'huggingface_hub.snapshot_download',
        lambda repository, revision, allow_patterns: asked.append((repository, revision)) or (
            str(tmp_path)))
    assert find_checkpoint(address) == tmp_path
    assert asked == [(name, revision)]


@pytest.mark.parametrize(('address', 'sentence'), [
    ('https://huggingface.co/datasets/a/b', 'no address of a model'),
    ('https://huggingface.co/openvla', 'no address of a model'),
    ('https://huggingface.co/a/b/tree/main/lora_adapter', 'no address of a model'),
    ('https://huggingface.co/a/b/tree/..%2F..%2F\x1b[31m', 'no address of a model'),
    ('https://example.com/a/b', 'nothing is read; download the checkpoint and name'),
    ('s3://bucket/policy', 'nothing is read'), ('file:///tmp/policy', 'nothing is read'),
])
def test_any_other_address_asks_nobody(monkeypatch, address, sentence):
    monkeypatch.setattr('huggingface_hub.snapshot_download', None)
    assert sentence in sentence_of(address)
