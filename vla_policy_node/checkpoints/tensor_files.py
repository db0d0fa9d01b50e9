"""Opens files of tensors: safetensors, and `.pt` files of torch without the code in them.

Both libraries map the file, check most of what it says about itself, and trust it in some points
that are checked here before: how long a header may be, whether an archive is compressed, and
whether a tensor has the bytes that its shape needs.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from vla_policy_node.checkpoints.quantised import ADVICE
from vla_policy_node.checkpoints.reading import MB, foreign, plain, regular_file

# 982 tensors, as of the public checkpoints, take 120 kB of header and as a pickle 250 kB.
HEADER_BYTES = 16 * MB
PICKLE_BYTES = 4 * MB
OLDER_PICKLE_BYTES = MB  # which are looked through one operation at a time
DIRECTORY_BYTES = 4 * MB  # of a zip archive
# Kinds of numbers that weights are stored in. Integers would need scales that nobody reads; 8-bit
# floats mean themselves where no scales lie beside them (`checkpoints.quantised`).
PLAIN_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WEIGHT_DTYPES = (*PLAIN_DTYPES, torch.float8_e4m3fn, torch.float8_e5m2)

# What wrappers put into names: of distributed training, of torch.compile and of peft.
_WRAPPERS = re.compile(
    r'(?:(?<=\.)|^)(?:module|_orig_mod|_forward_module|_(?:fsdp|checkpoint)_wrapped_module)\.')
_PEFT = 'base_model.model.'

_COULD_RUN_CODE = 'holds something else than tensors, which could run code; it was not read'
_END = b'PK\x05\x06'  # of a zip archive, and the bytes from there on without a comment
_END_BYTES = 22
# How torch's older format begins: a pickle of a number that only it has.
_OLDER_FORMAT = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'
_OLDER_PICKLES = 5  # before the bytes of its tensors


@contextmanager
def open_safetensors(path: Path) -> Iterator[tuple[list[str], Callable[[str], Tensor], Mapping]]:
    """Yield tensor names, a function that gets one, and the texts in the header.

    On the CPU, as views of the mapped file. ValueError with one sentence for any other file.
    """
    size = regular_file(path)
    with foreign(path), path.open('rb') as stream:
        header = int.from_bytes(stream.read(8), 'little')
    if header > min(HEADER_BYTES, size):
        raise ValueError(
            f'{path} cannot be read: its header claims {header:,} bytes; download it again.'
        )
    with foreign(path):
        file = safe_open(path, framework='pt')

    def get(name: str) -> Tensor:
        with foreign(path, f'has a tensor {plain(name)} that cannot be read; download it again'):
            return file.get_tensor(name)

    with file:
        yield [*file.keys()], get, file.metadata() or {}


def load_pt(path: Path, device: torch.device | str = 'cpu') -> object:
    """Return what torch saved, without running code from it, and mapped where that is possible.

    ValueError with one sentence for a file that is damaged or holds something else.
    """
    regular_file(path)
    # Only the newer of torch's two formats, a zip archive, can be mapped.
    archive = zipfile.is_zipfile(path)
    with foreign(path), path.open('rb') as stream:
        problem = _archive_problem(stream) if archive else _pickle_problem(stream)
    if problem:
        raise ValueError(f'{path} {problem}.')
    with foreign(path):
        try:
            return torch.load(path, map_location=device, weights_only=True, mmap=archive)
        except pickle.UnpicklingError:
            pass
    raise ValueError(f'{path} {_COULD_RUN_CODE}.')


def unwrapped(name: str) -> str:
    """Return the name of a tensor without what wrappers put into it."""
    return _WRAPPERS.sub('', name).removeprefix(_PEFT)


def plain_names(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Names without wrappers -> those of the file; ValueError for two that become the same."""
    plain_ones: dict[str, str] = {}
    for name in names:
        if name.endswith('_flat_param'):
            raise ValueError(
                f'{path} holds {plain(name)}, weights as FSDP keeps them while it trains; save '
                'the model with StateDictType.FULL_STATE_DICT.')
        if plain_ones.setdefault(unwrapped(name), name) != name:
            raise ValueError(
                f'{path} holds {plain(unwrapped(name))} twice, as {plain(name)} and as '
                f'{plain(plain_ones[unwrapped(name)])}; leave the one to be used.')
    return plain_ones


def check_weights(path: Path, name: str, tensor: object) -> None:
    """Raise ValueError unless this is a tensor of real numbers that are all in the file.

    A view that repeats a few stored numbers would grow to any size when it is copied.
    """
    known = type(tensor) in (Tensor, torch.nn.Parameter)  # no class of a library's own
    if not known or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        raise ValueError(f'{path} holds no table of tensors; it is no part of a checkpoint.')
    if tensor.device.type != 'cpu' or tensor.nbytes > tensor.untyped_storage().nbytes():
        raise ValueError(
            f'{path} says that {plain(name)} has shape {list(tensor.shape)}, and does not hold '
            'so many numbers; download it again.'
        )


def check_dtype(
    path: Path, name: str, tensor: Tensor, known: Collection[torch.dtype] = WEIGHT_DTYPES
) -> None:
    """Raise ValueError for weights in a kind of number that cannot be used as it is."""
    if tensor.dtype not in known:
        kinds, kind = (
            ', '.join(str(dtype).removeprefix('torch.') for dtype in dtypes)
            for dtypes in (known, [tensor.dtype])
        )
        raise ValueError(
            f'{path} stores {plain(name)} as {kind}, and weights are read in {kinds} only; '
            f'convert it, or if it was quantised, {ADVICE}.'
        )


def _archive_problem(stream: BinaryIO) -> str:
    """What is wrong with a zip archive of torch's, before anything in it is read, else ''."""
    size = stream.seek(0, 2)
    stream.seek(max(0, size - _END_BYTES - (1 << 16)))
    tail = stream.read()
    end = tail.rfind(_END)
    listed = int.from_bytes(tail[end + 12 : end + 16], 'little')
    if end < 0 or listed == 0xFFFFFFFF:  # of archives with more than 65535 files
        listed = DIRECTORY_BYTES + 1
    if listed > DIRECTORY_BYTES:
        return 'lists more files than any checkpoint has; put the real file there'
    with zipfile.ZipFile(stream) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                return 'is compressed, which torch never does; save it again with torch.save'
            if entry.filename.endswith('.pkl') and entry.file_size > PICKLE_BYTES:
                return f'holds {entry.file_size:,} bytes beside its tensors; save it again'
    return ''


def _pickle_problem(stream: BinaryIO) -> str:
    """What is wrong with a file that should be of torch's older format, else ''."""
    start = stream.read(len(_OLDER_FORMAT))
    if not start or start.startswith(b'PK'):
        return 'cannot be read; the download may be incomplete'
    if start != _OLDER_FORMAT:
        return _COULD_RUN_CODE
    stream.seek(0)
    for _ in range(_OLDER_PICKLES):
        for _, _, position in pickletools.genops(stream):
            if position is not None and position > OLDER_PICKLE_BYTES:
                return 'holds more than one MB beside its tensors; save it again with torch.save'
    return ''
