"""The words of the prompt and their token ids."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from vla_policy_node.models.config import TokenIds

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

    def __init__(self, tokenizer: Tokenizer, token_ids: TokenIds):
        self._tokenizer = tokenizer
        self._token_ids = token_ids

    @classmethod
    def load(cls, path: Path, token_ids: TokenIds) -> PromptEncoder:
        """Read a `tokenizer.json`; ValueError if it is missing, damaged or without BOS."""
        if not path.is_file():
            raise ValueError(f'{path.parent} has no {path.name}; is it a complete checkpoint?')
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library has none of its own
            raise ValueError(f'{path} is no tokenizer that can be read: {error}.') from error
        encoder = cls(tokenizer, token_ids)
        if encoder.encode('start')[0] != token_ids.bos:
            raise ValueError(
                f'{path} does not put the id {token_ids.bos} (BOS) before a prompt; take the '
                'tokenizer.json that belongs to this checkpoint.'
            )
        return encoder

    def encode(self, instruction: str) -> list[int]:
        """Ids of the whole prompt, BOS first; ValueError for an instruction without words."""
        if not instruction.strip():
            raise ValueError('The instruction is empty; say what the robot should do.')
        ids = self._tokenizer.encode(prompt_text(instruction)).ids
        return end_with_empty(ids, self._token_ids.empty)

    def words(self, text: str) -> list[int]:
        """Ids of words as they stand in the middle of a prompt."""
        return self._tokenizer.encode(f' {text}', add_special_tokens=False).ids
