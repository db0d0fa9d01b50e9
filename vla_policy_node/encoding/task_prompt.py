"""Prompts of pi0, pi0.5 and SmolVLA: the task, and for pi0.5 the state in words.

| form | words |
|---|---|
| openpi, but for pi0.5 with the state | the task, cleaned; a line break, tokenised alone |
| LeRobot, pi0 and SmolVLA | the task as it is, and a line break unless it ends with one |
| pi0.5 | `Task: <cleaned>, State: <numbers>;` a line break `Action: ` |

Cleaned is without spaces around, and with spaces for _ and line breaks. The numbers of the state
are bins from 0 to 255 of the normalised values, -1 for what is below -1. Prompts that are too
long were cut off in training, which loses words or the state; here they are refused instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.reading import read_json
from vla_policy_node.checkpoints.sentencepiece_file import read_sentencepiece
from vla_policy_node.checkpoints.tokenizer_file import read_tokenizer
from vla_policy_node.encoding.prompt import PromptEncoder, check_length

# Names under which the two kinds of tokenizer files are looked for, in this order.
TOKENIZERS = ('tokenizer.json', 'tokenizer.model', 'paligemma_tokenizer.model')
PALIGEMMA_BOS = 2
PALIGEMMA = (
    "PaliGemma's is given out by Google to those who accept its terms: do that at "
    'https://huggingface.co/google/paligemma-3b-pt-224, then `hf auth login` and '
    '`hf download google/paligemma-3b-pt-224 tokenizer.json --local-dir {directory}`')
SMOLVLM = (
    'take that of the backbone: `hf download HuggingFaceTB/SmolVLM2-500M-Video-Instruct '
    'tokenizer.json tokenizer_config.json --local-dir {directory}`')
_BINS = np.linspace(-1, 1, 257)[:-1]
_MIDDLE = 128  # the bin of 0


@dataclass(frozen=True)
class Form:
    """How a task becomes words.

    cleaned: see the module. ends: 'always' with a line break that is tokenised by itself,
    'unless there' with one that belongs to the words, or 'never'. state: whether the state is in
    the words; padded_to: with how many numbers, of which those that there are not are 128.
    """

    cleaned: bool
    ends: str
    state: bool = False
    padded_to: int = 0

    def text(self, task: str, bins: Sequence[int] | None) -> str:
        """Words of the prompt; bins: of the state, None to leave a place for it."""
        if self.cleaned:
            task = task.strip().replace('_', ' ').replace('\n', ' ')
        if self.state:
            missing = self.padded_to - len(bins or ())
            numbers = [*(bins or ()), *[_MIDDLE] * max(0, missing)]
            words = '{state}' if bins is None else ' '.join(map(str, numbers))
            return f'Task: {task}, State: {words};\nAction: '
        if self.ends == 'unless there' and not task.endswith('\n'):
            return f'{task}\n'
        return task


FORMS = {
    'openpi': Form(cleaned=True, ends='always'),
    'lerobot': Form(cleaned=False, ends='unless there'),
    'state': Form(cleaned=True, ends='never', state=True),
    'padded state': Form(cleaned=True, ends='never', state=True, padded_to=32),  # LeRobot 0.4
}


def state_bins(state: np.ndarray) -> tuple[int, ...]:
    """[P] normalised -> the numbers by which a prompt says it; -1 for what lies below -1."""
    return tuple((np.digitize(state, _BINS) - 1).tolist())


class TaskPrompt(PromptEncoder):
    """Turns a task, and for some policies the state, into prompt ids.

    most: ids of a prompt in training. cut_left: whether training cut longer ones off at the start.
    """

    def __init__(
        self, tokenizer: Tokenizer, vocabulary: int, path: Path, form: Form, most: int,
        cut_left: bool = False,
    ):
        super().__init__(tokenizer, vocabulary, path, text=lambda task: form.text(task, None))
        self.most = most
        self.reads_state = form.state
        self._form, self._cut_left = form, cut_left

    @classmethod
    def find(
        cls, folders: Sequence[Path], vocabulary: int, form: Form, most: int,
        first: int | None = None, instead: str = '',
    ) -> TaskPrompt:
        """Read the tokenizer that is in one of these folders; ValueError with one sentence.

        vocabulary: ids that the policy knows. form: one of FORMS, or another. first: what must
        stand before a prompt (BOS). instead: what to do if there is none, `PALIGEMMA` or
        `SMOLVLM`.
        """
        path = next((folder / name for folder in folders for name in TOKENIZERS
                     if (folder / name).is_file()), None)
        if path is None:
            directory = folders[0]
            raise ValueError(
                f'{directory} has no tokenizer, neither {TOKENIZERS[0]} nor {TOKENIZERS[1]}; '
                f'{instead.format(directory=directory) or "is it a complete checkpoint?"}.')
        is_json = path.suffix == '.json'
        tokenizer = read_tokenizer(path) if is_json else read_sentencepiece(path, first)
        made = cls(tokenizer, vocabulary, path, form, most, _cuts_left(path.parent))
        if first is not None and made.tokenise('start', (0,))[0] != first:
            raise ValueError(
                f'{path} does not put the id {first} (BOS) before a prompt; take the tokenizer '
                'that belongs to this checkpoint.')
        return made

    def encode(self, instruction: str, bins: tuple[int, ...] | None = None) -> list[int]:
        """Ids of the whole prompt, however many; ValueError for no words, or too many.

        bins: `state_bins` of the state, if the prompt reads it; None for one in the middle.
        """
        check_length(instruction)
        return self.tokenise(instruction, bins)

    def tokenise(self, task: str, bins: tuple[int, ...] | None = None) -> list[int]:
        """Ids of a prompt of any task, also an empty one."""
        ids = self._ids(self._form.text(task, bins if bins is not None else ()))
        if self._form.ends == 'always' and not self._form.state:
            ids = [*ids, *self._ids('\n', add_special_tokens=False)]
        return ids

    def ids_of(self, words: str) -> list[int]:
        """Ids of words that are a prompt already."""
        return self._ids(words)

    def cut(self, ids: list[int]) -> list[int]:
        """Leave as many ids as in training."""
        if not self.most or len(ids) <= self.most:
            return ids
        return ids[-self.most:] if self._cut_left else ids[:self.most]


def _cuts_left(folder: Path) -> bool:
    name = 'tokenizer_config.json'
    if not (folder / name).is_file():
        return False
    settings = Entries(read_json(folder / name), name)
    return settings.word('truncation_side', ('left', 'right'), 'right') == 'left'
