"""Batches of sequences: grouped, worked on in threads, their rows written to files."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# of files that a run reads once or twice
PLAIN = {
    "compression": "none",
    "use_dictionary": False,
    "write_statistics": False,
    "write_batch_size": 1 << 16,
}
TOKENS_PER_BATCH = 1_000_000  # of some 100 bytes each, while their rows are read
SEQUENCES_PER_BATCH = 1_024


class Rows(AbstractContextManager):
    """A file of rows in a folder of its own, which is written bit by bit."""

    def __init__(self, folder: Path) -> None:
        """Empty the folder."""
        self.path = emptied(folder) / "part-00.parquet"
        self.writer: pq.ParquetWriter | None = None

    def add(self, rows: pa.Table) -> None:
        """Write rows, and the file's columns where it has none yet."""
        if self.writer is None:
            words = [f.name for f in rows.schema if pa.types.is_dictionary(f.type)]
            options = PLAIN | {"use_dictionary": words}
            self.writer = pq.ParquetWriter(self.path, rows.schema, **options)
        self.writer.write_table(rows)

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()


def grouped(
    schema: pa.Schema, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Put batches of sequences together, to some TOKENS_PER_BATCH each.

    Once without a sequence, if there are none.
    """
    held, tokens = [empty(schema)], 0
    for batch in batches:
        held.append(pa.Table.from_batches([batch]))
        tokens += len(batch["token_ids"].flatten())
        if tokens >= TOKENS_PER_BATCH:
            yield whole(held)
            held, tokens = [], 0
    if held:
        yield whole(held)


def in_turn(
    function: Callable[[Any], Any], items: Iterable[Any], threads: int
) -> Iterator[Any]:
    """Call a function for each item in threads, and yield what it returns in turn.

    A few are called ahead, no more.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def emptied(folder: Path) -> Path:
    """Make a folder, without what an earlier run may have left there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def empty(schema: pa.Schema) -> pa.Table:
    """Make a table without rows."""
    return pa.Table.from_arrays(
        [pa.nulls(0, field.type) for field in schema], schema=schema
    )


def whole(tables: list[pa.Table]) -> pa.RecordBatch:
    """Make one batch of tables with the same columns."""
    table = pa.concat_tables(tables)
    return pa.RecordBatch.from_arrays(
        [column.combine_chunks() for column in table.columns], schema=table.schema
    )
