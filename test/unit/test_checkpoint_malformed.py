"""Whatever files a checkpoint consists of, loading it ends in a policy or in one sentence."""

import io
import json
import os
import pickle
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import checkpoint_variants as variants
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from vla_policy_node import cli
from vla_policy_node.checkpoints import reading, tensor_files
from vla_policy_node.nn.heads import VocabularyHead
from vla_policy_node.policy.interface import InferenceRequest, Observation
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.runtime import loading

LIMIT_S = 5.0  # of the processor's time, on which other processes have no claim
LIMIT_MB = 600
MODEL = 'model.safetensors'
ACTION_HEAD = 'action_head--7_checkpoint'


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    """A complete checkpoint, not to be changed."""
    return variants.make(tmp_path_factory.mktemp('good') / 'policy')


@pytest.fixture
def directory(good, tmp_path):
    return variants.copy(good, tmp_path / 'policy')


def refusal_of(directory):
    """The sentence with which a checkpoint is refused, in time."""
    start = time.process_time()
    with pytest.raises(ValueError) as caught:
        LocalPolicy.load(directory, methods=())
    assert time.process_time() - start < LIMIT_S
    text = str(caught.value)
    assert_sentence(text)
    return text


def assert_sentence(text):
    assert text.endswith(('.', '?')), text
    assert text.isprintable(), text
    assert len(text) < 600, text


def put(document, place, value):
    """Replace the entry at a place such as 'a.b.c'."""
    *outer, last = place.split('.')
    for name in outer:
        document = document.setdefault(name, {})
    document[last] = value


def edit(directory, file, place, value):
    document = json.loads((directory / file).read_text())
    put(document, place, value)
    (directory / file).write_text(json.dumps(document))


# --- config.json ---

NAN, INFINITY = float('nan'), float('inf')
TEXT, VISION_ENCODER = 'text_config', 'vision_tiny.featurizer'
SIZES = [
    *[(f'{TEXT}.hidden_size', value) for value in (-1, 0, 10**18, 33, '32', [], {}, True)],
    *[(f'{TEXT}.num_hidden_layers', value) for value in (10**6, 0, -5, 2.5, True, 'two')],
    *[(f'{TEXT}.num_attention_heads', value) for value in (0, 3, 32, -4)],
    *[(f'{TEXT}.vocab_size', value) for value in (0, 10**9, -576)],
    *[(f'{TEXT}.rms_norm_eps', value) for value in (NAN, 0, -1e-6, '1e-6')],
    *[(f'{TEXT}.rope_theta', value) for value in (0, INFINITY, -1)],
    (f'{TEXT}.intermediate_size', -48),
    (TEXT, []),
    ('vision_tiny', 5),
    (VISION_ENCODER, None),
    *[(f'{VISION_ENCODER}.embed_dim', value) for value in (0, -24, 10**12)],
    *[(f'{VISION_ENCODER}.num_heads', value) for value in (0, 5)],
    *[(f'{VISION_ENCODER}.patch_size', value) for value in (0, 57, -14)],
    *[(f'{VISION_ENCODER}.img_size', value) for value in (0, 10**6)],
    *[(f'{VISION_ENCODER}.feature_block', value) for value in (-1, 10**6)],
    (f'{VISION_ENCODER}.num_reg_tokens', -4),
    (f'{VISION_ENCODER}.layer_scale', 'yes'),
    (f'{VISION_ENCODER}.norm_eps', 0),
    *[('chunk_length', value) for value in (0, -8, 10**6, '8')],
    *[('cameras', value) for value in (0, 3, -1)],
    ('proprio', 'no'),
    ('trained', 1),
    ('center_crop', 0),
    ('diffusion_steps', 0),
    ('n_action_bins', 1),
    ('pad_to_multiple_of', 10**6),
    *[('tiny_token_ids.bos', value) for value in (10**6, -1)],
    ('tiny_token_ids', 7),
    ('action_rows', 'all'),
    ('method_settings', []),
    ('method_settings.lightvla', 3),
    ('method_settings.fastv.layer', [1]),
    ('method_settings.fastv.layer', 10**400),
]


@pytest.mark.parametrize(('place', 'value'), SIZES)
def test_a_size_that_no_policy_has_is_named(directory, place, value):
    edit(directory, 'config.json', place, value)
    text = refusal_of(directory)
    assert 'config.json' in text
    assert place in text


@pytest.mark.parametrize(('place', 'value', 'sentence'), [
    (f'{TEXT}.num_hidden_layers', 500, 'config.json asks for|describes at least|lacks'),
    (f'{TEXT}.hidden_size', 65536, 'describes at least'),
    (f'{VISION_ENCODER}.img_size', 112, 'the two vision encoders different images'),
    ('llm_max_length', 20, 'describes 90 rows'),
    ('head', 'flow', "names the head 'flow'"),
    ('head', 'cogact', "sizes of the head 'cogact' under 'dit'"),
    ('head', ['l1'], 'config.json has head a list|must be a string'),
    ('dit', {'width': 24, 'heads': 0}, 'dit.heads'),
    ('dit', {'depth': 24}, 'dit.depth, which is not known'),
    ('norm_stats', 'none', None),
])
def test_sizes_that_do_not_fit_each_other_are_refused(directory, place, value, sentence):
    edit(directory, 'config.json', place, value)
    if sentence is None:  # nobody looks there
        LocalPolicy.load(directory, methods=())
        return
    text = refusal_of(directory)
    assert re.search(sentence, text), text


def test_null_is_what_is_left_out(directory):
    edit(directory, 'config.json', 'chunk_length', None)
    edit(directory, 'config.json', f'{TEXT}.rope_scaling', None)
    assert LocalPolicy.load(directory, methods=()).description.chunk_length == 8


# --- any JSON file ---

DEEP = 100_000
DOCUMENTS = {
    'nothing': '',
    'half': '{"a":',
    'a list': '[]',
    'null': 'null',
    'a number': '7',
    'no UTF-8': b'\xff\xfe{\x00}',
    'an entry twice': '{"a": 1, "a": 2}',
    'deep lists': '[' * DEEP + ']' * DEEP,
    'deep objects': '{"a":' * DEEP + '1' + '}' * DEEP,
    'rather deep': '{"a":' * 400 + '1' + '}' * 400,
    'a long number': '{"a": ' + '1' * 5000 + '}',
    'a control character': '{"a\nb": 1}',
}
JSON_FILES = (
    'config.json', 'dataset_statistics.json', 'preprocessor_config.json', 'tokenizer.json')


@pytest.mark.parametrize('file', JSON_FILES)
@pytest.mark.parametrize('content', DOCUMENTS)
def test_what_is_no_document_is_refused_with_its_file(directory, file, content):
    content = DOCUMENTS[content]
    (directory / file).write_bytes(content.encode() if isinstance(content, str) else content)
    assert f'/{file} ' in refusal_of(directory)


@pytest.mark.parametrize('file', JSON_FILES)
def test_a_document_that_is_too_large_is_not_read(directory, file):
    with (directory / file).open('ab') as stream:
        stream.truncate(1 << 40)
    assert 'such a file never has more than' in refusal_of(directory)


@pytest.mark.parametrize('file', [*JSON_FILES, MODEL, f'{ACTION_HEAD}.safetensors'])
@pytest.mark.parametrize('kind', ['pipe', 'directory', 'loop', 'device'])
def test_what_is_no_file_is_not_opened(directory, file, kind):
    path = directory / file
    path.unlink()
    if kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'directory':
        path.mkdir()
    else:
        path.symlink_to(file if kind == 'loop' else '/dev/zero')
    assert file.split('--')[0] in refusal_of(directory)


def test_files_of_the_hubs_cache_are_links_and_are_read(directory):
    (directory.parent / 'blobs').mkdir()
    for path in [*directory.iterdir()]:
        path.rename(directory.parent / 'blobs' / path.name)
        path.symlink_to(Path('..') / 'blobs' / path.name)
    LocalPolicy.load(directory, methods=())


# --- statistics and normalisation ---

SEVEN = [0.0] * 7


@pytest.mark.parametrize(('place', 'value'), [
    ('libero_small', 5),
    ('libero_small', []),
    ('libero_small.action', [1]),
    ('libero_small.action', None),
    ('libero_small.proprio', 'none'),
    ('libero_small.action.q01', SEVEN[1:]),
    ('libero_small.action.q01', [*SEVEN[1:], NAN]),
    ('libero_small.action.q99', [*SEVEN[1:], INFINITY]),
    ('libero_small.action.q99', [1e308] * 7),
    ('libero_small.action.q99', [10**400] * 7),
    ('libero_small.action.q01', ['0'] * 7),
    ('libero_small.action.q01', [True] * 7),
    ('libero_small.action.q01', [SEVEN] * 7),
    ('libero_small.action.q01', [2.0] * 7),
    ('libero_small.action.q01', 'low'),
    ('libero_small.action.q01', {'0': 1}),
    ('libero_small.action.q99', None),
    ('libero_small.action.mask', [2] * 7),
    ('libero_small.action.mask', ['yes'] * 7),
    ('libero_small.proprio.q01', SEVEN),
    ('libero_small.proprio.q99', [-100.0] * 8),
    ('another', {}),
])
def test_statistics_that_no_policy_can_use_are_refused(directory, place, value):
    edit(directory, 'dataset_statistics.json', place, value)
    text = refusal_of(directory).lower()
    assert 'statistics' in text or 'data sets' in text


def test_a_data_set_cannot_write_to_a_terminal(directory):
    path = directory / 'dataset_statistics.json'
    (statistics,) = json.loads(path.read_text()).values()
    path.write_text(json.dumps({'a\x1b[31m': statistics}))
    assert 'which cannot be printed' in refusal_of(directory)


@pytest.mark.parametrize('value', [
    None, [], 5, [{}], [{}, {}], [1, 2], 'mean',
    *[[{'mean': [0.5] * 3, 'std': std}] * 2
      for std in ([0.0] * 3, [NAN] * 3, [1.0] * 2, ['1'] * 3, [-1.0] * 3, 1.0, None, [[1]] * 3)],
    [{'mean': [INFINITY] * 3, 'std': [1.0] * 3}] * 2,
])
def test_constants_with_which_no_encoder_sees_are_refused(directory, value):
    edit(directory, 'preprocessor_config.json', 'tvf_normalize_params', value)
    assert 'preprocessor_config.json' in refusal_of(directory)


# --- tokenizers ---

LITERAL = {'type': 'Replace', 'pattern': {'String': 'e'}, 'content': 'e' * 40}
ADDED = {'id': 0, 'content': 'x', 'special': False, 'single_word': False, 'lstrip': False,
         'rstrip': False, 'normalized': True}
TOKENIZERS = [
    ('normalizer', LITERAL | {'pattern': {'Regex': '(a+)+$'}}, 'may search for ever'),
    ('normalizer', LITERAL | {'pattern': {'String': ''}}, 'a text with characters'),
    ('normalizer', LITERAL | {'content': 'e' * 10**5}, 'at most 256 characters'),
    ('normalizer', {'type': 'Sequence', 'normalizers': [LITERAL] * 20}, '000 times as long|e[+]'),
    ('normalizer', {'type': 'Sequence', 'normalizers': [{'type': 'NFC'}] * 1000}, 'at most 64'),
    ('normalizer', {'type': 'Sequence', 'normalizers': 3}, 'normalizers 3'),
    ('normalizer', {'type': 'Precompiled', 'precompiled_charsmap': 'AAAA'}, "'Precompiled'"),
    ('normalizer', {'type': 'Prepend', 'prepend': 'x' * 10**5}, 'at most 256 characters'),
    ('normalizer', [], 'must hold an object under normalizer'),
    ('pre_tokenizer', {'type': 'FixedLength', 'length': 0}, "'FixedLength'"),
    ('pre_tokenizer', {'type': 'Split', 'pattern': {'Regex': '(x+x+)+y'}}, 'search for ever'),
    ('pre_tokenizer.type', 'Magic', "'Magic'"),
    ('post_processor.special_tokens', {}, "a table with '<s>'"),
    ('post_processor.single', [{'Sequence': {'id': 'A', 'type_id': 0}}] * 9, 'the text once'),
    ('post_processor.single', [{}] * 1000, 'at most 16 objects'),
    ('post_processor.special_tokens.<s>.ids', [1] * 10**5, 'at most 16'),
    ('post_processor.special_tokens.<s>.ids', [-1], 'no tokenizer that can be read'),
    ('post_processor', None, 'does not put the id 1'),
    ('model', None, "no entry 'model'"),
    ('model', {'type': 'BPE'}, 'no tokenizer that can be read'),
    ('model.type', 'GPT', "'GPT'"),
    ('model.dropout', 0.5, 'dropout 0.5'),
    ('model.continuing_subword_prefix', '#' * 50, 'continuing_subword_prefix'),
    ('model.vocab', [], 'no tokenizer that can be read'),
    ('model.vocab.Out', 10**12, 'no tokenizer that can be read'),
    ('model.vocab.Out', -1, 'no tokenizer that can be read'),
    ('model.vocab.q', 70_000, None),
    ('model.merges', [['no', 'such']], 'no tokenizer that can be read'),
    ('added_tokens', [ADDED] * 10**4, 'at most 4096 objects'),
    ('added_tokens', [ADDED | {'content': 'x' * 10**6}], 'at most 256 characters'),
    ('added_tokens', 5, 'added_tokens 5'),
]


@pytest.mark.parametrize(('place', 'value', 'sentence'), TOKENIZERS)
def test_a_tokenizer_that_would_run_away_or_panic_is_refused(directory, place, value, sentence):
    edit(directory, 'tokenizer.json', place, value)
    if sentence is None:
        policy = LocalPolicy.load(directory, methods=())
        with pytest.raises(ValueError, match='makes the id 70000 of this text') as caught:
            policy.check_instruction('qqq')
        assert_sentence(str(caught.value))
        return
    text = refusal_of(directory)
    assert 'tokenizer.json' in text
    assert re.search(sentence, text), text


def test_padding_and_truncation_of_the_file_are_not_the_policys(good, directory):
    """A file may ask for a billion ids, or for one."""
    before = LocalPolicy.load(good, methods=()).inputs.encode_prompt('pick up the bowl')
    for place, value in (
        ('padding', {'strategy': {'Fixed': 10**9}, 'direction': 'Right', 'pad_id': 0,
                     'pad_to_multiple_of': None, 'pad_type_id': 0, 'pad_token': '<pad>'}),
        ('truncation', {'direction': 'Right', 'max_length': 1, 'strategy': 'LongestFirst',
                        'stride': 0}),
        ('decoder', {'type': 'Magic'}),
    ):
        edit(directory, 'tokenizer.json', place, value)
    policy = LocalPolicy.load(directory, methods=())
    assert policy.inputs.encode_prompt('pick up the bowl') == before


def test_a_tokenizer_as_llamas_is_read(directory):
    """Its components, as the public checkpoints have them."""
    from tokenizers import Tokenizer

    document = json.loads((directory / 'tokenizer.json').read_text())
    document |= {
        'normalizer': {'type': 'Sequence', 'normalizers': [
            {'type': 'Prepend', 'prepend': '▁'},
            {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '▁'}]},
        'pre_tokenizer': None,
        'decoder': {'type': 'Sequence', 'decoders': [
            {'type': 'Replace', 'pattern': {'String': '▁'}, 'content': ' '},
            {'type': 'ByteFallback'}, {'type': 'Fuse'},
            {'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0}]},
    }
    document['model'] |= {'unk_token': '<empty>', 'fuse_unk': True, 'byte_fallback': True}
    (directory / 'tokenizer.json').write_text(json.dumps(document))
    ids = LocalPolicy.load(directory, methods=()).inputs.encode_prompt('lift')
    expected = Tokenizer.from_file(str(directory / 'tokenizer.json')).encode(
        'In: What action should the robot take to lift?\nOut:').ids
    assert ids[: len(expected)] == expected


# --- safetensors ---


def safetensors(header, data=b''):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, 'little') + text + data


def entry(shape, start, end, dtype='F32'):
    return {'dtype': dtype, 'shape': shape, 'data_offsets': [start, end]}


SAFETENSORS = {
    'nothing': b'',
    'four bytes': b'\0\0\0\0',
    'a header longer than the file': (1 << 40).to_bytes(8, 'little') + b'{}',
    'a header of all bits': b'\xff' * 16,
    'no JSON': safetensors(b'{"a"'),
    'a list': safetensors([]),
    'deep': safetensors(b'[' * 10**5),
    'a negative shape': safetensors({'a': entry([-1], 0, 4)}, b'\0' * 4),
    'an enormous shape': safetensors({'a': entry([2**40, 2**40], 0, 4)}, b'\0' * 4),
    'a shape of another size': safetensors({'a': entry([2], 0, 4)}, b'\0' * 4),
    'overlapping tensors': safetensors(
        {'a': entry([2], 0, 8), 'b': entry([2], 4, 12)}, b'\0' * 12),
    'a gap': safetensors({'a': entry([1], 4, 8)}, b'\0' * 8),
    'an end before the start': safetensors({'a': entry([1], 8, 4)}, b'\0' * 8),
    'data beyond the end': safetensors({'a': entry([100], 0, 400)}, b'\0' * 4),
    'an unknown kind': safetensors({'a': entry([1], 0, 4, 'F33')}, b'\0' * 4),
    'no entry': safetensors({'a': 5}),
    'no texts': safetensors({'__metadata__': {'a': 5}}),
}


@pytest.mark.parametrize('content', SAFETENSORS)
def test_a_damaged_file_of_weights_is_refused(directory, content):
    (directory / MODEL).write_bytes(SAFETENSORS[content])
    assert str(directory) in refusal_of(directory)


def rewrite(path, change):
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(('change', 'sentence'), [
    (lambda t: t.pop('projector.fc1.bias'), 'lacks 1 of .* first projector.fc1.bias'),
    (lambda t: t.update({'projector.fc1.bias': torch.zeros(3)}), r'shape \[3\], config.json asks'),
    (lambda t: t.update({'projector.fc1.bias': torch.zeros(192, dtype=torch.int8)}), 'as int8'),
    (lambda t: t.update({'projector.fc1.bias': torch.zeros(192, dtype=torch.complex64)}),
     'as complex64'),
    (lambda t: t.clear(), 'lacks .* tensors'),
])
def test_weights_that_do_not_fit_are_refused_before_any_is_placed(
        directory, monkeypatch, change, sentence):
    rewrite(directory / MODEL, change)
    monkeypatch.setattr(loading, '_place', lambda *_: pytest.fail('a weight was placed'))
    assert re.search(sentence, refusal_of(directory))


def test_a_weight_in_two_files_is_refused(directory):
    save_file({'projector.fc1.bias': torch.zeros(192)}, directory / 'model-2.safetensors')
    assert 'twice, in model' in refusal_of(directory)


def test_a_model_that_the_machine_has_no_memory_for_is_refused(directory, monkeypatch):
    monkeypatch.setattr(loading, 'memory_bytes', lambda: 1000)
    rewrite(directory / MODEL, lambda t: t.update({n: v.half() for n, v in t.items()}))
    assert 'this machine has' in refusal_of(directory)
    rewrite(directory / MODEL, lambda t: t.update({n: v.float() for n, v in t.items()}))
    LocalPolicy.load(directory, methods=())  # a view of the files needs none


@pytest.mark.parametrize('content', [
    '[]', '{}', '{"weight_map": 5}', '{"weight_map": {"projector.fc1.bias": 7}}',
    '{"weight_map": {"projector.fc1.bias": "../../../etc/passwd"}}',
    '{"weight_map": {"projector.fc1.bias": "/etc/passwd"}, "metadata": []}',
])
def test_an_index_leads_nowhere(directory, content):
    """It is read for messages and checks alone; files are those of the directory."""
    (directory / 'model.safetensors.index.json').write_text(content)
    LocalPolicy.load(directory, methods=())
    assert 'FAIL' in CliRunner().invoke(cli.app, ['check', str(directory)]).output
    rewrite(directory / MODEL, lambda tensors: tensors.pop('projector.fc1.bias'))
    refusal_of(directory)


# --- torch's files ---


def saved(value, **how):
    stream = io.BytesIO()
    torch.save(value, stream, **how)
    return stream.getvalue()


def packed_again(content, **how):
    """The same archive, its files replaced or compressed."""
    stream, replaced = io.BytesIO(), how.pop('replaced', {})
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, 'w', **how) as new:
        for name in old.namelist():
            new.writestr(name, replaced.get(name.split('/')[-1], old.read(name)))
    return stream.getvalue()


class RunsCode:
    def __reduce__(self):
        return (Path.touch, (Path('code_ran'),))


def older(value):
    return saved(value, _use_new_zipfile_serialization=False)


def tiny():
    return {'fc1.bias': torch.zeros(2)}


def with_pickle(content, **how):
    return packed_again(saved(tiny()), replaced={'data.pkl': content}, **how)


TORCH = {
    'nothing': (lambda: b'', 'cannot be read; the download may be incomplete'),
    'text': (lambda: b'hello', 'could run code'),
    'a cut archive': (lambda: saved(tiny())[:300], 'cannot be read'),
    'a cut older file': (lambda: older(tiny())[:150], 'cannot be read'),
    'code': (lambda: pickle.dumps(RunsCode(), 2), 'could run code'),
    'code in an archive': (lambda: saved({'a': RunsCode()}), 'could run code'),
    'code in an older file': (lambda: older({'a': RunsCode()}), 'could run code'),
    'a list': (lambda: saved([torch.zeros(2)]), 'no table of tensors'),
    'a number': (lambda: saved({'step': 3}), 'no table of tensors'),
    'names that are numbers': (lambda: saved({3: torch.zeros(2)}), 'no table of tensors'),
    'tables in a table': (lambda: saved({'model': {'action_model': 5}}), 'no table of tensors'),
    'a sparse tensor': (
        lambda: saved({'a': torch.zeros(4, 4).to_sparse()}), 'no table of tensors'),
    'a tensor without data': (
        lambda: saved({'a': torch.zeros(5, device='meta')}), 'does not hold'),
    'one number as many': (
        lambda: saved({'a': torch.zeros(1).expand(10**6, 10**6)}), 'does not hold'),
    'a compressed archive': (
        lambda: with_pickle(b'\0' * (64 << 20), compression=zipfile.ZIP_DEFLATED),
        'is compressed'),
    'a long pickle': (lambda: with_pickle(b'N' * (5 << 20)), 'beside its tensors'),
    'no pickle': (lambda: with_pickle(b'\0'), 'cannot|could run'),
    'a long older pickle': (
        lambda: older(tiny())[:15] + b'\x80\x02' + b'N' * (5 << 20), 'beside its tensors'),
    'an empty archive': (lambda: b'PK\x05\x06' + b'\0' * 18, 'cannot be read'),
}


@pytest.mark.parametrize('content', TORCH)
def test_a_damaged_file_of_torch_is_refused(directory, monkeypatch, content):
    monkeypatch.chdir(directory)
    (directory / f'{ACTION_HEAD}.safetensors').unlink()
    make, sentence = TORCH[content]
    (directory / f'{ACTION_HEAD}.pt').write_bytes(make())
    text = refusal_of(directory)
    assert f'{ACTION_HEAD}.pt' in text
    assert re.search(sentence, text), text
    assert not (directory / 'code_ran').exists()


def test_a_directory_of_an_archive_is_bounded_before_it_is_parsed(directory, monkeypatch):
    monkeypatch.setattr(tensor_files, 'DIRECTORY_BYTES', 100)
    variants.to_pt(directory, 'action_head')
    assert 'lists more files' in refusal_of(directory)


# --- NaN ---


def test_a_head_of_words_says_nothing_where_a_number_is_missing():
    """Of numbers of which one is NaN argmax takes that one; a robot would follow it."""
    head = VocabularyHead(2, 100, bins=64, ids_end=100, actions=7)
    with torch.no_grad():
        head.lm_head.weight.zero_()
        head.lm_head.weight[90] = torch.nan
    assert head(torch.ones(1, 7, 2)).isnan().all()


# --- what the user sees ---


@pytest.mark.parametrize('damage', [
    lambda d: edit(d, 'config.json', f'{TEXT}.num_hidden_layers', 10**6),
    lambda d: edit(d, 'tokenizer.json', 'model.vocab', []),
    lambda d: (d / MODEL).write_bytes(b'\xff' * 16),
    lambda d: edit(d, 'dataset_statistics.json', 'libero_small.action', []),
])
def test_vla_check_says_the_sentence_and_no_traceback(directory, damage):
    damage(directory)
    result = CliRunner().invoke(cli.app, ['check', str(directory)])
    assert result.exit_code == 1
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert 'FAIL' in result.output
    assert 'Traceback' not in result.output


@pytest.mark.parametrize('name', ['\0', 'x' * 5000, '~nobody-of-this-name/policy', ''])
def test_a_name_that_cannot_be_looked_up_is_refused(name):
    with pytest.raises(ValueError) as caught:
        LocalPolicy.load(name)
    assert_sentence(str(caught.value))


LOAD_ALL = '''
import json, resource, sys
from pathlib import Path
from vla_policy_node.policy.local import LocalPolicy

LocalPolicy.load(sys.argv[1], methods=())
lines = Path('/proc/self/status').read_text().splitlines()
(kib,) = [int(line.split()[1]) for line in lines if line.startswith('VmSize')]
resource.setrlimit(resource.RLIMIT_AS, ((kib << 10) + (4 << 30),) * 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for directory in sys.argv[2:]:
    try:
        LocalPolicy.load(directory, methods=())
        text = ''
    except ValueError as error:
        text = str(error)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps([text, grown >> 10]), flush=True)
'''


@pytest.mark.slow
def test_bombs_are_refused_within_bounded_memory(good, tmp_path):
    """In a process of its own, whose peak tells what loading took."""
    def lists(d):
        (d / 'config.json').write_text('{"a": [' + '[],' * (1 << 20) + '[]]}')

    def objects(d):
        (d / 'tokenizer.json').write_text('{"a": [' + '{},' * (5 << 20) + '{}]}')

    def header(d):
        names = {f'{n:x}': entry([0], 0, 0) for n in range(100_000)}
        (d / MODEL).write_bytes(safetensors(names))

    def sparse(d):
        with (d / MODEL).open('wb') as stream:
            stream.truncate(1 << 40)

    def many(d):
        edit(d, 'config.json', f'{TEXT}.num_hidden_layers', 512)

    bombs = [lists, objects, header, sparse, many]
    directories = [variants.copy(good, tmp_path / bomb.__name__) for bomb in bombs]
    for bomb, directory in zip(bombs, directories, strict=True):
        bomb(directory)
    done = subprocess.run([sys.executable, '-c', LOAD_ALL, str(good), *map(str, directories)],
                          capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(bombs), done.stderr
    for bomb, (text, grown_mb) in zip(bombs, lines, strict=True):
        assert_sentence(text)
        assert grown_mb < LIMIT_MB, (bomb.__name__, grown_mb)


# --- laws ---

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([0, -1, 1, 2, 1e308, 2**63, 10**400, '', 'l1', [], {}]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=6)
FEW = settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])


def places_of(value, place=()):
    """Where something can be replaced in a document."""
    found = [place] if place else []
    items = value.items() if isinstance(value, dict) else (
        enumerate(value) if isinstance(value, list) and len(value) < 40 else ())
    for key, inner in items:
        found += places_of(inner, (*place, key))
        if len(found) > 400:
            break
    return found


def changed(document, place, value, delete):
    document = inner = json.loads(json.dumps(document))
    for key in place[:-1]:
        inner = inner[key]
    if delete:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return document


def acts_or_says_why(directory):
    """The law: a policy whose actions are finite, or a sentence."""
    start = time.process_time()
    try:
        policy = LocalPolicy.load(directory, methods=())
        grey = np.full((56, 56, 3), 128, np.uint8)
        actions = policy.infer(InferenceRequest(Observation(
            dict.fromkeys(('third_person', 'wrist'), grey), np.zeros(8), 'pick up the bowl',
        ))).actions
        assert np.isfinite(actions).all()
    except ValueError as error:
        assert_sentence(str(error))
    assert time.process_time() - start < LIMIT_S


@pytest.mark.parametrize('file', JSON_FILES)
def test_any_document_is_a_policy_or_a_sentence(good, directory, file):
    document = json.loads((good / file).read_text())
    places = places_of(document)

    @FEW
    @given(st.sampled_from(places), ANYTHING, st.booleans())
    def law(place, value, delete):
        (directory / file).write_text(json.dumps(changed(document, place, value, delete)))
        acts_or_says_why(directory)

    law()


@pytest.mark.parametrize('part', ['model', 'action_head', 'action_head.pt'])
def test_any_bytes_of_weights_are_a_policy_or_a_sentence(directory, part):
    if part.endswith('.pt'):
        path = variants.to_pt(directory, 'action_head')
    else:
        (path,) = directory.glob(f'{part}*.safetensors')
    content = path.read_bytes()
    beginning = min(len(content) - 1, 4000)  # of the header; of an archive the end, too
    where = st.integers(0, beginning) | st.integers(len(content) - 3000, len(content) - 1)

    @FEW
    @given(st.dictionaries(where, st.integers(0, 255), max_size=3),
           st.just(len(content)) | st.integers(0, len(content)))
    def law(flips, end):
        bytes_ = bytearray(content)
        for index, value in flips.items():
            bytes_[index] = value
        path.unlink(missing_ok=True)  # the last one may still be mapped
        path.write_bytes(bytes_[:end])
        acts_or_says_why(directory)

    law()


@FEW
@given(ANYTHING | st.text(max_size=300) | st.binary(max_size=200))
def test_any_value_can_be_shown_in_a_sentence(value):
    for text in (reading.shown(value), reading.plain(value), reading.listed([value] * 30)):
        assert text.isprintable()
        assert len(text) < 30 * reading.SHOWN_CHARACTERS
