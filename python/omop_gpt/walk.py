"""Walk the grammar over the sequences of a run, while dbt starts.

That takes dbt seconds, on one core. What is written is what the models would have
written, and a walk that fails leaves it to them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from omop_gpt.batches import SEQUENCES_PER_BATCH, Rows, grouped, in_turn
from omop_gpt.grammar import Grammar
from omop_gpt.histories import States, walked_batch

COLUMNS = pa.schema({"person_id": pa.int64(), "token_ids": pa.list_(pa.int32())})
begun: dict[Path, subprocess.Popen] = {}  # by the folder that they write to


def walk(
    states: States, batches: Iterable[pa.RecordBatch], folder: Path, threads: int
) -> None:
    """Tell what sequences are: a file of them in `folder`/walked, in their order."""
    with Rows(folder / "walked") as rows:
        for walked in in_turn(
            lambda batch: walked_batch(states, batch), batches, threads
        ):
            rows.add(walked)


@contextmanager
def walking(
    files: Sequence[Path], vocabulary: Path, folder: Path, threads: int
) -> Iterator[None]:
    """Have another process walk the sequences of files meanwhile."""
    with suppress(OSError):  # no process, or one that ended at once
        begun[folder] = process = subprocess.Popen(
            [sys.executable, "-m", __name__, vocabulary, folder, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        with process.stdin as names:
            json.dump([str(file) for file in files], names)
    try:
        yield
    finally:
        if folder in begun:  # nobody asked for it
            begun[folder].kill()
            was_walked(folder)


def was_walked(folder: Path) -> bool:
    """Wait for the process that writes to a folder; tell whether it is all there."""
    process = begun.pop(folder, None)
    return process is not None and process.wait() == 0


def main() -> None:
    """Walk as the arguments say, the files whose names come in."""
    vocabulary, folder, threads = sys.argv[1:]
    files = json.load(sys.stdin)

    def batches() -> Iterator[pa.RecordBatch]:
        for file in files:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(
                    SEQUENCES_PER_BATCH, columns=COLUMNS.names, use_threads=False
                ):
                    yield batch.cast(COLUMNS)

    states = States.of_grammar(Grammar.load(vocabulary))
    walk(states, grouped(COLUMNS, batches()), Path(folder), int(threads))


if __name__ == "__main__":
    main()
