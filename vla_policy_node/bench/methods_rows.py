"""Rows of `vla bench methods`: every method, and useful variants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vla_policy_node import acceleration
from vla_policy_node.evaluation.contenders import Contender, parse_contender
from vla_policy_node.families import read_model_config

# FastV ranked by other rows than published; the larger of EfficientVLA's two published shares;
# then methods of different stages, which add up. Pairs that cannot run together are refused when
# they are read.
VARIANTS = (
    'fastv:rows=prefill',
    'fastv:rows=behind',
    'efficientvla_tokens:keep=0.44',
    'lightvla+depth_cut:keep=0.7',
    'fastv+depth_cut:keep=0.7',
    'ttf_vla+lightvla',
    'ttf_vla+vla_cache',
    'efficientvla_tokens+efficientvla_cache',
)


def contenders(methods: Sequence[str] = (), also: Sequence[str] = ()) -> list[Contender]:
    """Return 'dense', then `methods`, or else all of them and VARIANTS, and then `also`."""
    texts = ['dense', *(methods or (*acceleration.available(), *VARIANTS)), *also]
    return [parse_contender(text) for text in dict.fromkeys(texts)]


def swept(names: Sequence[str] = ()) -> list[str]:
    """Return methods, () for all, and each with one constant changed that its source leaves open.

    Written as `parse_contender` reads them. ValueError for a method that leaves none open.
    """
    texts = []
    for name in names or acceleration.available():
        settings = acceleration.named(name).open_settings
        if names and not settings:
            raise ValueError(f'{name} has no constant that its source leaves open.')
        if settings:
            texts.append(name)
        texts += [f'{name}:{setting}={str(value).lower()}'
                  for setting, values in settings.items() for value in values]
    return texts


def share_out(
    chosen: Sequence[Contender], directories: Sequence[Path]
) -> list[list[Contender]]:
    """Return what each of several checkpoints is compared with.

    A contender with a checkpoint of its own goes to the first of them whose actions come from a
    head of the same kind, the others to all. ValueError if there is no such checkpoint.
    """
    heads = [read_model_config(directory).family for directory in directories]
    shares: list[list[Contender]] = [[] for _ in directories]
    for contender in chosen:
        if contender.checkpoint is None:
            places = range(len(directories))
        else:
            head = read_model_config(contender.checkpoint).family
            if head not in heads:
                raise ValueError(
                    f'{contender.label} cannot be compared: no checkpoint here has its kind of '
                    f'action head ({head.head}); name one with --checkpoint.')
            places = (heads.index(head),)
        for place in places:
            shares[place].append(contender)
    return shares


def split_usable(
    chosen: Sequence[Contender], checkpoint: Path
) -> tuple[list[Contender], dict[str, str]]:
    """Return those that the checkpoint can run, and for the others a sentence that says why not.

    Methods that learn need weights that only some checkpoints bring; a contender may have a
    checkpoint of its own.
    """
    usable, refused = [], {}
    for contender in chosen:
        directory = contender.checkpoint or checkpoint
        config = read_model_config(directory)
        try:
            acceleration.prepare(
                [acceleration.create(name, **contender.settings.get(name, {}))
                 for name in contender.methods],
                directory, config)
        except ValueError as error:
            refused[contender.label] = str(error).replace(str(directory), 'The checkpoint')
        else:
            usable.append(contender)
    return usable, refused
