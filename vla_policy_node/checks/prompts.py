"""What public tokenizers make of a few prompts: Llama 2's, and PaliGemma's."""

from __future__ import annotations

from pathlib import Path

from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.layout import read_json, speaks_vicuna
from vla_policy_node.families.prismatic_config import PrismaticConfig
from vla_policy_node.nn.config import ModelConfig, TokenIds

# Instruction -> ids that the tokenizer of the public checkpoints gives, 29871 appended.
LLAMA2_PROMPTS = {
    'put both moka pots on the stove': (
        1, 512, 29901, 1724, 3158, 881, 278, 19964, 2125, 304, 1925, 1716, 286, 17029, 282, 1862,
        373, 278, 380, 994, 29973, 13, 3744, 29901, 29871,
    ),
    'pick up the black bowl between the plate and the ramekin and place it on the plate': (
        1, 512, 29901, 1724, 3158, 881, 278, 19964, 2125, 304, 5839, 701, 278, 4628, 12580, 29880,
        1546, 278, 15284, 322, 278, 364, 420, 9089, 322, 2058, 372, 373, 278, 15284, 29973, 13,
        3744, 29901, 29871,
    ),
    'Turn on the stove and put the moka pot on it': (
        1, 512, 29901, 1724, 3158, 881, 278, 19964, 2125, 304, 2507, 373, 278, 380, 994, 322, 1925,
        278, 286, 17029, 3104, 373, 372, 29973, 13, 3744, 29901, 29871,
    ),
}  # fmt: skip

# Sizes of the table of words of published models with PaliGemma's tokenizer, and what that makes
# of the start of a prompt of pi0.5, as users have logged it.
PALIGEMMA_WORDS = (257152, 257216)
PALIGEMMA_PROMPT = 'Task: pick up a pack of tissues and put it on the plate, State: 24 152'
PALIGEMMA_IDS = (
    2, 7071, 235292, 4788, 908, 476, 3386, 576, 29703, 578, 2507, 665, 611, 573, 8811, 235269,
    3040, 235292, 235248, 235284, 235310, 235248, 235274, 235308, 235284,
)


def uses_llama2_tokenizer(directory: Path, config: ModelConfig) -> bool:
    """Whether prompts of this checkpoint have to become Llama-2's ids.

    Small checkpoints have a vocabulary of their own and say so in `tiny_token_ids`.
    """
    entries = Entries(read_json(directory, 'config.json'), 'config.json')
    named = entries.word('hf_llm_id', default='meta-llama/Llama-2-7b-hf')
    public = isinstance(config, PrismaticConfig) and config.token_ids == TokenIds()
    return public and 'llama-2' in named.lower() and not speaks_vicuna(directory)
