"""The words of the prompt and their token ids."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from vla_policy_node.checkpoints.reading import foreign
from vla_policy_node.checkpoints.tokenizer_file import read_tokenizer
from vla_policy_node.nn.config import ModelConfig, TokenIds

TEMPLATE = 'In: What action should the robot take to {instruction}?\nOut:'


def prompt_text(instruction: str) -> str:
    """Return the prompt OpenVLA was trained with; instructions are lower-case."""
    return TEMPLATE.format(instruction=instruction.lower())


def end_with_empty(ids: list[int], empty: int) -> list[int]:
    """Append the id that stood between prompt and actions in training, if it is not there.

    Training tokenised 'Out: ' with a space, tokenising the prompt alone loses it.
    """
    return ids if ids[-1] == empty else [*ids, empty]


class PromptEncoder:
    """Turns an instruction into prompt ids."""

    def __init__(self, tokenizer: Tokenizer, token_ids: TokenIds, vocabulary: int, path: Path):
        self._tokenizer = tokenizer
        self._token_ids = token_ids
        self._vocabulary = vocabulary
        self._path = path

    @classmethod
    def load(cls, path: Path, config: ModelConfig) -> PromptEncoder:
        """Read a `tokenizer.json`; ValueError if it is missing, damaged or without BOS."""
        if not path.exists():
            raise ValueError(f'{path.parent} has no {path.name}; is it a complete checkpoint?')
        encoder = cls(
            read_tokenizer(path), config.token_ids, config.language_model.vocabulary, path)
        if encoder.encode('start')[0] != config.token_ids.bos:
            raise ValueError(
                f'{path} does not put the id {config.token_ids.bos} (BOS) before a prompt; take '
                'the tokenizer.json that belongs to this checkpoint.'
            )
        return encoder

    def encode(self, instruction: str) -> list[int]:
        """Ids of the whole prompt, BOS first; ValueError for an instruction without words."""
        if not instruction.strip():
            raise ValueError('The instruction is empty; say what the robot should do.')
        return end_with_empty(self._ids(prompt_text(instruction)), self._token_ids.empty)

    def words(self, text: str) -> list[int]:
        """Ids of words as they stand in the middle of a prompt."""
        return self._ids(f' {text}', add_special_tokens=False)

    def _ids(self, text: str, **how: bool) -> list[int]:
        with foreign(self._path, 'cannot read this text; take the one that belongs to this '
                                 'checkpoint'):
            ids = self._tokenizer.encode(text, **how).ids
        if not ids or max(ids) >= self._vocabulary:
            raise ValueError(
                f'{self._path} makes {"the id " + str(max(ids)) if ids else "nothing"} of this '
                f'text, and the policy knows the ids below {self._vocabulary}; take the '
                'tokenizer.json that belongs to this checkpoint.'
            )
        return ids
