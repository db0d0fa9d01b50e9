"""The words of the prompt and their token ids."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

from vla_policy_node.checkpoints.reading import foreign
from vla_policy_node.checkpoints.tokenizer_file import read_tokenizer
from vla_policy_node.policy.interface import MAX_INSTRUCTION_BYTES

TEMPLATE = 'In: What action should the robot take to {instruction}?\nOut:'
# As Vicuna v1.5 is spoken to.
VICUNA_TEMPLATE = (
    'A chat between a curious user and an artificial intelligence assistant. The assistant gives '
    "helpful, detailed, and polite answers to the user's questions. USER: What action should the "
    'robot take to {instruction}? ASSISTANT:')


def as_in_training(instruction: str) -> str:
    """Return an instruction as data sets have them: small letters, one line, no spaces around.

    A space or a newline more, left over from a file or a form, would be other tokens.
    """
    return ' '.join(filter(None, map(str.strip, instruction.lower().splitlines())))


def prompt_text(instruction: str) -> str:
    """Return the prompt OpenVLA was trained with."""
    return TEMPLATE.format(instruction=as_in_training(instruction))


def vicuna_text(instruction: str) -> str:
    """Return the prompt OpenVLA v0.1 was trained with, whose language model is a Vicuna."""
    return VICUNA_TEMPLATE.format(instruction=as_in_training(instruction))


def check_length(instruction: str) -> None:
    """Raise ValueError for an instruction of no words, or more than are read."""
    if not instruction.strip():
        raise ValueError('The instruction is empty; say what the robot should do.')
    size = len(instruction.encode(errors='replace'))
    if size > MAX_INSTRUCTION_BYTES:
        raise ValueError(
            f'The instruction is too long ({size} bytes); {MAX_INSTRUCTION_BYTES} are read.')


def end_with_empty(ids: list[int], empty: int) -> list[int]:
    """Append the id that stood between prompt and actions in training, if it is not there.

    Training tokenised 'Out: ' with a space, tokenising the prompt alone loses it.
    """
    return ids if ids[-1] == empty else [*ids, empty]


def _instead(directory: Path) -> str:
    """What to do without a tokenizer.json, going by what else is there."""
    if (directory / 'tokenizer.model').is_file():
        return (', only tokenizer.model, which is not read; copy the tokenizer.json of '
                'openvla/openvla-7b if it is that of Llama-2, else convert it: '
                'AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY) of the '
                'transformers library.')
    return '; is it a complete checkpoint?'


class PromptEncoder:
    """Turns an instruction into prompt ids.

    text: an instruction -> the words of the whole prompt. path: of the tokenizer. most: ids that
    the policy was trained with, 0 for any number. reads_state: whether the words hold the state,
    so that each observation has a prompt of its own (`encoding.task_prompt`).
    """

    most = 0
    reads_state = False

    def __init__(
        self, tokenizer: Tokenizer, vocabulary: int, path: Path, last: int | None = None,
        text: Callable[[str], str] = prompt_text,
    ):
        self.text = text
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self.path = path
        self._last = last

    @classmethod
    def load(
        cls, path: Path, vocabulary: int, first: int | None = None, last: int | None = None,
        text: Callable[[str], str] = prompt_text,
    ) -> PromptEncoder:
        """Read a `tokenizer.json`; ValueError if it is missing or damaged.

        vocabulary: ids that the policy knows. first: what the file must put before a prompt (BOS).
        last: what is appended if the prompt does not end with it.
        """
        if not os.path.lexists(path):
            raise ValueError(f'{path.parent} has no {path.name}{_instead(path.parent)}')
        encoder = cls(read_tokenizer(path), vocabulary, path, last, text)
        if first is not None and encoder.encode('start')[0] != first:
            raise ValueError(
                f'{path} does not put the id {first} (BOS) before a prompt; take '
                'the tokenizer.json that belongs to this checkpoint.'
            )
        return encoder

    def encode(self, instruction: str) -> list[int]:
        """Ids of the whole prompt; ValueError for no words, or too many."""
        check_length(instruction)
        ids = self._ids(self.text(instruction))
        return ids if self._last is None else end_with_empty(ids, self._last)

    def words(self, text: str) -> list[int]:
        """Ids of words as they stand in the middle of a prompt."""
        return self._ids(f' {text}', add_special_tokens=False)

    def _ids(self, text: str, **how: bool) -> list[int]:
        with foreign(self.path, 'cannot read this text; take the one that belongs to this '
                                 'checkpoint'):
            ids = self._tokenizer.encode(text, **how).ids
        if not ids or max(ids) >= self._vocabulary:
            raise ValueError(
                f'{self.path} makes {"the id " + str(max(ids)) if ids else "nothing"} of this '
                f'text, and the policy knows the ids below {self._vocabulary}; take the '
                'tokenizer.json that belongs to this checkpoint.'
            )
        return ids
