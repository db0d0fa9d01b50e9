"""Reads the parquet files of a dataset that anybody may have written, within bounds of memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vla_policy_node.checkpoints.reading import MB, foreign, plain, regular_file
from vla_policy_node.lerobot.info import Feature
from vla_policy_node.lerobot.libraries import parquet

# A picture is one cell; no camera makes larger ones, and files of rows are split at 100 MB.
MOST_CELL_BYTES = 64 * MB
_MOST_FILE_BYTES = 16 * 1024 * MB
_MOST_TABLE_BYTES = 1024 * MB
_DAMAGED = 'is damaged or was cut short (a recorder that was not ended writes no end of a file)'
_PICTURES_TOGETHER = 8
_LIMITS = {'thrift_string_size_limit': 256 * MB, 'thrift_container_size_limit': 10**7}


@contextmanager
def opened(path: Path, texts: Sequence[str] = ()) -> Iterator[Any]:
    """Give a `ParquetFile`; whatever is wrong with it, here or inside, is one sentence.

    texts: columns of the file, if it has them, whose bytes are in memory once where they are in
    the file once: a file of 5 kB can hold the same 64 MB in a thousand rows.
    """
    module = parquet()
    if not os.path.lexists(path):
        raise ValueError(f'{path} is missing; download the dataset again, with all of its files.')
    regular_file(path, _MOST_FILE_BYTES)
    passing: list[ValueError] = []
    try:
        with (foreign(path, f'{_DAMAGED}; download it again'),
              module.ParquetFile(path, **_LIMITS) as described,
              module.ParquetFile(
                  path, metadata=described.metadata, read_dictionary=_present(described, texts),
                  **_LIMITS) as file):
            try:
                yield file
            except RefusedTableError as error:
                passing.append(error)
                raise
    except ValueError:
        if passing:
            raise passing[0] from None
        raise


def _present(file: Any, texts: Sequence[str]) -> list[str]:
    if not texts:
        return []
    paths = {file.schema.column(place).path for place in range(len(file.schema))}
    return [text for text in texts if text in paths]


class RefusedTableError(ValueError):
    """What is said already about a table, in one sentence."""


def numbers(path: Path, features: Sequence[Feature], most_rows: int) -> dict[str, np.ndarray]:
    """Read columns of numbers of a whole file: key -> [rows] or [rows, size], as declared.

    ValueError with one sentence for what is not there or of another size, and for empty cells.
    """
    with opened(path) as file:
        rows = file.metadata.num_rows
        if rows > most_rows:
            raise RefusedTableError(
                f'{path} has {rows:,} rows, and the dataset {most_rows:,}; download it again.')
        if rows * sum(8 * feature.size for feature in features) > _MOST_TABLE_BYTES:
            raise RefusedTableError(
                f'{path} has {rows:,} rows of numbers in one file, which do not fit into memory; '
                'write the dataset anew with a smaller data_files_size_in_mb.')
        present = set(file.schema_arrow.names)
        for feature in features:
            if feature.key not in present:
                raise RefusedTableError(
                    f'{path} has no column {plain(feature.key)}, which meta/info.json describes; '
                    'download it again.')
        _check_columns(path, file, features)
        table = file.read([feature.key for feature in features])
        if table.num_rows != rows:
            raise RefusedTableError(f'{path} {_DAMAGED}; download it again.')
        return {feature.key: _array(path, table.column(feature.key), feature)
                for feature in features}


def _check_columns(path: Path, file: Any, features: Sequence[Feature]) -> None:
    """Raise for columns that hold more than numbers of the declared size, before they are read.

    Repeated values take no room in a file: 1 kB of it can be lists of a billion numbers.
    """
    from pyarrow import types

    first: dict[str, int] = {}
    leaves = 0
    for field in file.schema_arrow:
        first[field.name] = leaves
        leaves += _leaves(field.type)
    groups = range(file.metadata.num_row_groups)
    for feature in features:
        kind = file.schema_arrow.field(feature.key).type
        while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            kind = kind.value_type
        if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
            raise _other_than_declared(path, feature)
        values = sum(file.metadata.row_group(group).column(first[feature.key]).num_values
                     for group in groups)
        if values > file.metadata.num_rows * feature.size:
            raise _other_than_declared(path, feature)


def _leaves(kind: Any) -> int:
    """Return how many columns of a file one of the table is: as many as a struct has parts."""
    return sum(_leaves(kind.field(place).type) for place in range(kind.num_fields)) or 1


def _other_than_declared(path: Path, feature: Feature) -> RefusedTableError:
    return RefusedTableError(
        f'{path}: the column {plain(feature.key)} does not hold {feature.size} of {feature.dtype} '
        'in every row, as meta/info.json says; take the original files.')


def _array(path: Path, column: Any, feature: Feature) -> np.ndarray:
    """Return a chunked column of numbers as an array of the declared size."""
    from pyarrow import types

    array = column.combine_chunks()
    chunks = array.chunks if hasattr(array, 'chunks') else [array]
    parts = []
    for chunk in chunks:
        rows = len(chunk)
        while types.is_list(chunk.type) or types.is_large_list(chunk.type) or (
                types.is_fixed_size_list(chunk.type)):
            if chunk.null_count:
                raise _other_than_declared(path, feature)
            if not types.is_fixed_size_list(chunk.type):
                lengths = np.diff(np.asarray(chunk.offsets))
                if len(lengths) and (lengths != lengths[0]).any():
                    raise _other_than_declared(path, feature)
            chunk = chunk.flatten()
        if chunk.null_count or len(chunk) != rows * feature.size:
            raise _other_than_declared(path, feature)
        parts.append(np.asarray(chunk.to_numpy(zero_copy_only=False)).reshape(
            (rows, feature.size) if feature.size > 1 else (rows,)))
    joined = np.concatenate(parts) if parts else np.empty((0, feature.size))
    with np.errstate(invalid='ignore', over='ignore'):  # refused by who needs finite numbers
        return joined.astype(feature.dtype) if feature.dtype in _DTYPES else joined


_DTYPES = ('float32', 'float64', 'int8', 'int16', 'int32', 'int64', 'uint8', 'bool')


def pictures(path: Path, key: str, start: int, stop: int) -> Iterator[bytes]:
    """Yield the encoded pictures of rows of a file, some at a time; no more are in memory."""
    with opened(path, [f'{key}.bytes']) as file:
        first = 0
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first + rows > start and first < stop:
                at = first
                for batch in file.iter_batches(_PICTURES_TOGETHER, [group], [key]):
                    for cell in batch.column(0)[max(0, start - at):max(0, stop - at)]:
                        yield _picture(path, key, cell)
                    at += batch.num_rows
            first += rows
            if first >= stop:
                return


def _picture(path: Path, key: str, cell: Any) -> bytes:
    value = cell.as_py()
    data = value.get('bytes') if isinstance(value, dict) else None
    if isinstance(data, bytes) and len(data) > MOST_CELL_BYTES:
        raise RefusedTableError(f'{path}: a picture of {plain(key)} has {len(data):,} bytes; at '
                                f'most {MOST_CELL_BYTES:,} are read.')
    if not isinstance(data, bytes) or not data:
        raise RefusedTableError(
            f'{path}: a row of {plain(key)} holds no picture but '
            + ('a path to one; embed them (LeRobot does when it saves an episode).'
               if isinstance(value, dict) and value.get('path') else 'nothing; record it again.'))
    return data
