"""Prompts of pi0, pi0.5 and SmolVLA, and the tokenizers that come with them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from vla_policy_node.checkpoints.sentencepiece_file import read_sentencepiece
from vla_policy_node.encoding.encoder import InputEncoder
from vla_policy_node.encoding.padded import PaddedPreprocessor
from vla_policy_node.encoding.task_prompt import (
    FORMS,
    PALIGEMMA,
    PALIGEMMA_BOS,
    SMOLVLM,
    TaskPrompt,
    state_bins,
)

DATA = Path(__file__).parents[1] / 'data' / 'values'
MODEL, IDS = DATA / 'paligemma_like.model', json.loads(
    (DATA / 'paligemma_like_ids.json').read_text())
CLEANED = {'  a_b\nc ': 'a b c', 'Pick UP': 'Pick UP', '\n': ''}


def write_bytes_tokenizer(folder):
    """Write a tokenizer.json of which every byte is an id: 2, then 3 + byte."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {letter: 3 + place for place, letter in enumerate(
        sorted(letters, key=lambda letter: _byte_of(letter)))}
    made = Tokenizer(models.BPE({'<pad>': 0, '<eos>': 1, '<bos>': 2, **vocabulary}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.post_processor = processors.TemplateProcessing(
        single='<bos> $A', special_tokens=[('<bos>', 2)])
    made.save(str(folder / 'tokenizer.json'))


def _byte_of(letter):
    """Undo GPT-2's names of bytes: those that print are themselves, the others follow at 256."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printed]
    return ord(letter) if ord(letter) < 256 else hidden[ord(letter) - 256]


@pytest.fixture
def prompts(tmp_path):
    write_bytes_tokenizer(tmp_path)

    def make(form, most=200):
        return TaskPrompt.find([tmp_path], 300, FORMS[form], most, PALIGEMMA_BOS)
    return make


def ids_of(text):
    return [2, *(3 + byte for byte in text.encode())]


@pytest.mark.parametrize('task', CLEANED)
def test_openpi_cleans_the_task_and_lerobot_does_not(prompts, task):
    assert prompts('openpi').tokenise(task) == ids_of(CLEANED[task] + '\n')
    ended = task if task.endswith('\n') else task + '\n'
    assert prompts('lerobot').tokenise(task) == ids_of(ended)


def test_the_state_is_in_the_words_as_it_is_or_filled_up(prompts):
    bins, more = state_bins(np.array([-0.2256, -1.0001, 2.0])), ' 128' * 29
    words = 'Task: a b, State: 99 -1 255{};\nAction: '
    assert prompts('state').encode('a_b', bins) == ids_of(words.format(''))
    assert prompts('padded state').encode('a_b', bins) == ids_of(words.format(more))
    assert '{state}' in prompts('state').text('{instruction}')


@given(st.integers(-3072, 3072).map(lambda parts: parts / 1024))
def test_bins_are_256_equal_parts_and_one_below(value):
    (number,) = state_bins(np.array([value]))
    assert number == max(-1, min(255, np.floor((value + 1) * 128)))


def test_what_was_cut_off_in_training_is_said(prompts, tmp_path):
    short = prompts('lerobot', 8)
    assert short.cut(short.tokenise('a' * 20)) == ids_of('a' * 20)[:8]
    (tmp_path / 'tokenizer_config.json').write_text('{"truncation_side": "left"}')
    left = prompts('lerobot', 8)
    assert left.cut(left.tokenise('a' * 20)) == [*ids_of('a' * 20), 13][-8:]
    with pytest.raises(ValueError, match=r'makes 22 ids.*trained with 8'):
        encoder(short).encode_prompt('a' * 20)


def encoder(prompt, **more):
    class Sizes:
        """Just the sizes that an encoder asks for."""

        class language_model:  # noqa: N801
            context_length = 10_000

        class spec:  # noqa: N801
            state = tuple(type('Quantity', (), {'name': name}) for name in 'ab')

        visual_tokens = other_rows = 0

    class Doubled:
        """Statistics that are easy to follow."""

        def normalise_proprio(self, proprio):
            return proprio * 2

    return InputEncoder(Sizes, prompt, PaddedPreprocessor('lerobot', 14), Doubled(),
                        {'top': 'none', 'wrist': 'none'}, **more)


def test_each_observation_has_the_prompt_of_its_own_state(prompts):
    made = encoder(prompts('state'), may_miss=True)
    images = {'wrist': np.zeros((14, 14, 3), np.uint8)}
    for state, words in (((0.0, -0.5), '128 0'), ((0.25, 1.0), '192 255')):
        inputs = made.encode(images, np.array(state), 'go')
        assert inputs.prompt_ids[0].tolist() == ids_of(f'Task: go, State: {words};\nAction: ')
        assert inputs.pixels.shape == (1, 1, 14, 14, 3)
        np.testing.assert_allclose(inputs.proprio[0], np.array(state) * 2)
    lengths = {len(ids) for ids in made.prompts_of_all_lengths('go')}
    assert lengths == {len(ids_of(f'Task: go, State: {words};\nAction: '))
                       for words in ('0 0', '0 128', '128 128')}


def test_a_policy_without_any_picture_is_told_so(prompts):
    with pytest.raises(ValueError, match='one of top, wrist'):
        encoder(prompts('openpi'), may_miss=True).encode({}, np.zeros(2), 'go')
    with pytest.raises(ValueError, match="camera 'top'"):
        encoder(prompts('openpi')).encode({}, np.zeros(2), 'go')


@pytest.mark.parametrize(('text', 'ids'), IDS)
def test_a_sentencepiece_model_gives_the_ids_of_its_library(text, ids):
    assert read_sentencepiece(MODEL).encode(text).ids == ids
    assert read_sentencepiece(MODEL, 2).encode(text).ids == [2, *ids]


def test_a_checkpoint_may_bring_either_kind_of_tokenizer(tmp_path):
    shutil.copy(MODEL, tmp_path / 'paligemma_tokenizer.model')
    made = TaskPrompt.find([tmp_path / 'no', tmp_path], 500, FORMS['openpi'], 48, PALIGEMMA_BOS)
    (newline,) = read_sentencepiece(MODEL).encode('\n').ids
    assert made.encode('pick_up')[-1] == newline and made.encode('pick_up')[0] == 2
    with pytest.raises(ValueError, match='knows the ids below 9'):
        TaskPrompt.find([tmp_path], 9, FORMS['openpi'], 48, PALIGEMMA_BOS)


def test_both_kinds_of_file_give_the_same_ids(tmp_path):
    read_sentencepiece(MODEL, 2).save(str(tmp_path / 'tokenizer.json'))
    made = TaskPrompt.find([tmp_path], 500, FORMS['state'], 200, PALIGEMMA_BOS)
    assert made.path.name == 'tokenizer.json'
    for task in ('stack_the cubes', 'go 12'):
        words = f'Task: {task.replace("_", " ")}, State: 7 -1;\nAction: '
        assert made.encode(task, (7, -1)) == read_sentencepiece(MODEL, 2).encode(words).ids


@pytest.mark.parametrize(('instead', 'sentence'), [
    (PALIGEMMA, r'accept its terms.*huggingface\.co/google/paligemma'), (SMOLVLM, 'SmolVLM2')])
def test_a_missing_tokenizer_is_said_with_what_to_do(tmp_path, instead, sentence):
    with pytest.raises(ValueError, match=sentence):
        TaskPrompt.find([tmp_path], 9, FORMS['openpi'], 48, instead=instead)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 5000), st.binary(max_size=12), st.integers(0, 12))
def test_a_damaged_model_ends_in_a_sentence(tmp_path_factory, place, noise, cut):
    content = MODEL.read_bytes()
    place %= len(content)
    path = tmp_path_factory.getbasetemp() / 'damaged.model'
    path.write_bytes(content[:place] + noise + content[place + cut:])
    try:
        read_sentencepiece(path, 2).encode('pick up\nthe bowl')
    except ValueError as error:
        assert 'damaged.model' in str(error)


def _varint(number):
    return bytes([number & 127 | 128, number >> 7]) if number > 127 else bytes([number])


def _message(*fields):
    """Write fields as (number, bytes) or (number, whole number)."""
    return b''.join(
        _varint(number << 3 | 2) + _varint(len(value)) + value if isinstance(value, bytes)
        else _varint(number << 3) + _varint(value) for number, value in fields)


UNKNOWN = (1, _message((1, b'<unk>'), (3, 2)))


@pytest.mark.parametrize(('fields', 'sentence'), [
    ([UNKNOWN, (1, _message((1, b'a'))), (1, _message((1, b'a')))], 'a piece twice'),
    ([UNKNOWN, (1, _message((1, b'a' * 300)))], 'of 300 characters'),
    ([UNKNOWN, (3, _message((2, b'rules')))], 'compiled rules'),
    ([UNKNOWN, (2, _message((3, 3)))], 'words or characters'),
    ([(1, _message((1, b'a')))], 'what is unknown'),
    ([UNKNOWN], 'no BOS')])
def test_a_model_that_is_not_built_here_is_refused(tmp_path, fields, sentence):
    (tmp_path / 'tokenizer.model').write_bytes(_message(*fields))
    with pytest.raises(ValueError, match=sentence):
        read_sentencepiece(tmp_path / 'tokenizer.model', 1)
