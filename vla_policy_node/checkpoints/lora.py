"""Weights and the changes that LoRA made to them: W + s B A, added up as they are read.

A is [rank, in] and B [out, rank]; of a convolution, flattened to these; of an embedding, which
looks rows of A up, the change is (B A)^T. s is alpha / rank, or alpha / sqrt(rank) (rsLoRA).
Kinds of adapters that do something else are refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.reading import plain, read_json
from vla_policy_node.checkpoints.tensor_files import check_dtype

ADAPTER_CONFIG = 'adapter_config.json'
LARGEST_ALPHA = 1e6
# Pieces as the peft library names them; behind them is the name of the adapter, where several
# may be: in a model, but not in the files of an adapter alone.
_PIECE = re.compile(r'(.+)\.lora_(embedding_)?([AB])(?:\.(?!weight$)(\w+))?(?:\.weight)?')
_TRAINED = re.compile(r'\.modules_to_save(\.\w+(?=\.))?')
# Entries of adapter_config.json that change no weight that is in the files, or are read below.
_HARMLESS = frozenset((
    'alpha_pattern', 'auto_mapping', 'base_model_name_or_path', 'bias', 'ensure_weight_tying',
    'eva_config', 'exclude_modules', 'inference_mode', 'init_lora_weights', 'layers_pattern',
    'layers_to_transform', 'lora_alpha', 'lora_dropout', 'megatron_core', 'modules_to_save',
    'peft_type', 'peft_version', 'qalora_group_size', 'r', 'rank_pattern', 'revision',
    'runtime_config', 'target_modules', 'task_type', 'use_rslora'))
_INITIAL = (True, False, 'gaussian', 'eva', 'orthogonal')  # others change the base, too
# How much a change counts, of a module's name and the rank.
Scale = Callable[[str, int], float]


@dataclass(frozen=True)
class Source:
    """A tensor in a file."""

    path: Path
    name: str
    get: Callable[[str], Tensor]

    def read(self) -> Tensor:
        """The tensor, on the CPU, as a view of the mapped file."""
        return self.get(self.name)


@dataclass
class Change:
    """What LoRA left of one weight; path: a file with a piece of it."""

    path: Path
    down: Source | None = None
    up: Source | None = None
    embedding: bool = False


def target_of(name: str) -> str:
    """Return what the model calls a tensor of a file, '' for what is only part of one."""
    if _PIECE.fullmatch(name) or '.original_module.' in name:
        return ''
    return _TRAINED.sub('', name.replace('.base_layer.', '.'))


@dataclass
class Tensors:
    """Tensors of the same files: whole ones by their names in the model, and changes of some.

    A name may be in several files; whoever reads them says so.
    """

    whole: list[tuple[str, Source]] = field(default_factory=list)
    changes: dict[str, Change] = field(default_factory=dict)
    wrapped: set[str] = field(default_factory=set)  # weights round which there was an adapter

    def add(self, path: Path, names: Iterable[str], get: Callable[[str], Tensor]) -> None:
        """Sort the tensors of a file; ValueError for pieces of other kinds of adapters."""
        for name in sorted(names):
            source = Source(path, name, get)
            if 'lora_magnitude_vector' in name:
                raise _refused(path, f'a DoRA adapter ({plain(name)})')
            if found := _PIECE.fullmatch(name):
                module, embedding, letter, _ = found.groups()
                change = self.changes.setdefault(
                    f'{module}.weight', Change(path, embedding=bool(embedding)))
                place = 'down' if letter == 'A' else 'up'
                if getattr(change, place) is not None:
                    raise _refused(path, f'more than one adapter of {plain(module)}')
                setattr(change, place, source)
            elif re.search(r'\.(lora_|trainable_tokens|token_adapter)', name):
                raise _refused(path, plain(name))
            elif target := target_of(name):
                self.whole.append((target, source))
                if name.endswith('.base_layer.weight'):
                    self.wrapped.add(target)

    def put(self, adapter: Tensors, path: Path, beside: str = '') -> None:
        """Change these by an adapter that has a file of its own.

        beside: how names begin of what is merged elsewhere, '' for nothing. ValueError for changes
        of anything that is not here.
        """
        if not adapter.whole and not adapter.changes:
            raise ValueError(f'{path} holds no adapter; download it again.')
        known = {target for target, _ in self.whole}
        trained = dict(adapter.whole)
        strange = sorted(name for name in (trained.keys() | adapter.changes.keys()) - known
                         if not (beside and name.startswith(beside)))
        if strange or self.changes:
            what = strange or sorted(self.changes)
            raise ValueError(
                f'{path} changes {plain(what[0])}, which the base model '
                f'{"does not have" if strange else "changes itself"}; it belongs to another one, '
                'whose directory has to stand in adapter_config.json.')
        self.whole = [(target, trained.get(target, source)) for target, source in self.whole]
        self.changes = {name: adapter.changes[name] for name in known & adapter.changes.keys()}

    def merged(self, scale: Scale) -> Iterator[tuple[str, Source, Callable[[], Tensor], bool]]:
        """Yield of each whole tensor its name, where it is, what reads it, whether it changes."""
        for target in sorted(self.changes.keys() - {target for target, _ in self.whole}):
            raise _unfit(self.changes[target].path, target)  # there is nothing to change
        alone = self.wrapped - self.changes.keys() if self.changes else ()
        for target, source in self.whole:
            if target in alone:
                raise ValueError(
                    f'{source.path} has an adapter of other weights and none of {plain(target)}; '
                    'the file is damaged, download it again.')
            change = self.changes.get(target)
            read = source.read if change is None else adding(source.read, target, change, scale)
            yield target, source, read, change is not None


def adding(
    read: Callable[[], Tensor], target: str, change: Change, scale: Scale
) -> Callable[[], Tensor]:
    """Return what reads a weight with its change, in float32."""
    return lambda: _add(read(), target, change, scale)


def _add(base: Tensor, target: str, change: Change, scale: Scale) -> Tensor:
    if change.down is None or change.up is None:
        raise _unfit(change.path, target)
    down, up = change.down.read(), change.up.read()
    for source, tensor in ((change.down, down), (change.up, up)):
        check_dtype(source.path, source.name, tensor)
    if change.embedding:
        down, up = up.mT if up.ndim == 2 else up, down.mT if down.ndim == 2 else down
    rank, rows = len(down) if down.ndim else 0, base.shape[0] if base.ndim else 0
    if not (rank and rows and down.ndim > 1 and up.ndim > 1) or (
        up.shape[0] != rows or up[0].numel() != rank or down[0].numel() != base[0].numel()
    ):
        raise _unfit(change.path, target)
    product = (up.float().flatten(1) @ down.float().flatten(1)).view(base.shape)
    return base.float() + scale(target.rpartition('.')[0], rank) * product


def read_scale(path: Path) -> Scale:
    """Read adapter_config.json: how much its changes count.

    ValueError for an adapter that does anything besides W + s B A.
    """
    entries = Entries(read_json(path), str(path))
    kind = entries.word('peft_type', default='LORA')
    if kind != 'LORA':
        raise _refused(path, f'an adapter of the kind {plain(kind)}')
    if entries.flag('use_dora', False):
        raise _refused(path, 'a DoRA adapter')
    if entries.flag('fan_in_fan_out', False):
        raise _refused(path, 'an adapter of transposed weights (fan_in_fan_out)')
    initial = entries.value('init_lora_weights', True)
    if initial not in _INITIAL:
        raise _refused(path, f'init_lora_weights {plain(initial)}, which changes the base as well')
    for name in entries.names():
        if name not in _HARMLESS and entries.value(name, None):
            raise _refused(path, f'an adapter with {plain(name)}')
    alpha = entries.number('lora_alpha', 0, LARGEST_ALPHA)
    patterns = entries.inside('alpha_pattern', {})
    special = {}
    for name in patterns.names():
        if not re.fullmatch(r'[\w.]+', name):  # else it may search for ever
            raise patterns.error(name, 'under the name of a module', name)
        special[name] = patterns.number(name, 0, LARGEST_ALPHA)
    root = entries.flag('use_rslora', False)

    def scale(module: str, rank: int) -> float:
        own = next((value for name, value in special.items()
                    if f'.{module}'.endswith(f'.{name}')), alpha)
        return own / (math.sqrt(rank) if root else rank)

    return scale


def _refused(path: Path, what: str) -> ValueError:
    return ValueError(
        f'{path} has {what}, which is not merged here; merge it where it was trained, with '
        'merge_and_unload of the peft library, and name the merged checkpoint.')


def _unfit(path: Path, target: str) -> ValueError:
    return ValueError(
        f'{path} has an adapter around {plain(target)} that does not fit its weight; the file '
        'is damaged, download it again.')
