"""Tables that are small on disk and large in memory: refused, or read so that they are not."""

import pytest

pytest.importorskip('pyarrow')
import pyarrow as pa
import pyarrow.parquet as pq

from vla_policy_node.lerobot import tables
from vla_policy_node.lerobot.info import Feature

ACTION = Feature('action', 'float32', (6,))
ROWS = 9


def written(folder, columns):
    pq.write_table(pa.table(columns), folder / 'file.parquet', compression='zstd')
    return folder / 'file.parquet'


@pytest.mark.parametrize('column', [
    pa.array([[0.0] * 6] * (ROWS - 1) + [[0.0] * 10**5]),
    pa.array([[[0.0] * 10**5]] + [[[0.0] * 6]] * (ROWS - 1)),
    pa.array(['six numbers'] * ROWS),
    pa.array([{'a': 1.0, 'b': 2.0}] * ROWS)])
def test_a_column_of_more_than_is_declared_is_refused_before_it_is_read(
        tmp_path, monkeypatch, column):
    path = written(tmp_path, {'pair': [{'a': 1, 'b': 2}] * ROWS, 'action': column})
    monkeypatch.setattr(pq.ParquetFile, 'read', None)
    with pytest.raises(ValueError, match='column action does not hold 6 of float32'):
        tables.numbers(path, [ACTION], ROWS)


def test_a_column_is_found_behind_those_of_several_parts(tmp_path):
    path = written(tmp_path, {
        'pair': [{'a': 'text', 'b': [2]}] * ROWS, 'many': [[1.0] * 50] * ROWS,
        'action': [[float(row)] * 6 for row in range(ROWS)]})
    assert tables.numbers(path, [ACTION], ROWS)['action'][:, 5].tolist() == [*range(ROWS)]


@pytest.mark.parametrize(('text', 'cell'), [
    ('task', 'x' * 10**5), ('task.bytes', {'bytes': b'x' * 10**5, 'path': 'x.png'})])
def test_what_a_file_repeats_is_in_memory_once(tmp_path, text, cell):
    path = written(tmp_path, {'task': [cell] * 100})
    with tables.opened(path, [text, 'other']) as file:
        batch = next(file.iter_batches(100))
        assert batch.num_rows == 100 and batch.nbytes < 2 * 10**5
        assert batch.column(0)[99].as_py() == cell
