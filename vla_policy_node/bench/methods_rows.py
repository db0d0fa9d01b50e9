"""What `vla bench methods` compares: every method that there is, and pairs that make sense."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vla_policy_node import acceleration
from vla_policy_node.evaluation.contenders import Contender, parse_contender
from vla_policy_node.models import checkpoint as checkpoints

# Methods of different stages, which add up. What cannot run together is refused when it is read.
PAIRS = (
    'lightvla+depth_cut:keep=0.7',
    'fastv+depth_cut:keep=0.7',
    'ttf_vla+lightvla',
    'ttf_vla+vla_cache',
)


def contenders(methods: Sequence[str] = ()) -> list[Contender]:
    """Return 'dense' and then `methods`, or else all methods with their defaults and the pairs."""
    texts = methods or (*acceleration.available(), *PAIRS)
    texts = ['dense', *(text for text in texts if text != 'dense')]
    return [parse_contender(text) for text in dict.fromkeys(texts)]


def split_usable(
    chosen: Sequence[Contender], checkpoint: Path
) -> tuple[list[Contender], dict[str, str]]:
    """Return those that the checkpoint can run, and for the others a sentence that says why not.

    Methods that learn need weights that only some checkpoints bring.
    """
    config = checkpoints.read_model_config(checkpoint)
    usable, refused = [], {}
    for contender in chosen:
        try:
            for name in contender.methods:
                method = acceleration.create(name, **contender.settings.get(name, {}))
                method.prepare(checkpoint, config)
        except ValueError as error:
            refused[contender.label] = str(error).replace(str(checkpoint), 'The checkpoint')
        else:
            usable.append(contender)
    return usable, refused
