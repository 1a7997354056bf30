"""What the dbt half asks of Python: a plugin of dbt-duckdb, named in profiles.yml.

Macros call it as adapter.store_relation('plugin', …, config): `config` says what to do.
Runs DuckDB's statements side by side, as dbt's own macros cannot, each on a cursor of
its own: they see what was committed before.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dbt.adapters.duckdb.plugins import BasePlugin

from omop_gpt import histories
from omop_gpt.batches import (
    PLAIN,
    SEQUENCES_PER_BATCH,
    Rows,
    emptied,
    empty,
    grouped,
    in_turn,
)
from omop_gpt.columns import Columns
from omop_gpt.encode import megabytes_of
from omop_gpt.histories import Language
from omop_gpt.ordering import ordered
from omop_gpt.pack import arrow, filled, numbers
from omop_gpt.tokens import Words, write_tokens
from omop_gpt.walk import walk, was_walked

ROWS_PER_GROUP = 500_000
ROWS_PER_FILE = 2 * ROWS_PER_GROUP
ONE = arrow(np.array([1], dtype=np.int32))[0]
# columns that go up by little, mostly: their differences are written
ASCENDING = (
    "person_id",
    "visit_order",
    "event_order",
    "source_id",
    "visit_occurrence_id",
    "event_date",
    "visit_start_date",
    "visit_end_date",
    "day_offset",
    "gap_days",
)
write_table = partial(pq.write_table, row_group_size=ROWS_PER_GROUP)


class Plugin(BasePlugin):
    """Orders histories, writes the timeline's tokens, or reads sequences."""

    def configure_connection(self, conn: Any) -> None:
        """Keep the connection that cursors are made of."""
        self.connection = conn

    def store(self, target_config: Any) -> None:
        """Call the method that the config names, with the rest of it."""
        config = dict(target_config.config)
        method = getattr(self, config.pop("do"))
        method(Path(target_config.location.path), **config)

    def order(
        self,
        folder: Path,
        histories: dict[str, dict[str, str]],
        timeline: dict[str, list[str]],
        meanings: str,
    ) -> None:
        """Write visits and events for each part, in order: files for models to read.

        `timeline`: folders of files that stay, with their columns, of which a query of
        `meanings` tells those of an event by its token_order, which counts from 1.
        """
        for made in map(Path, (folder / "visits", folder / "events", *timeline)):
            emptied(made)
        meant = self.query(meanings)

        def write(part: str) -> None:
            tables = {key: self.query(query) for key, query in histories[part].items()}
            rows = dict(zip(("visits", "events"), ordered(**tables), strict=True))
            for name, table in rows.items():
                write_table(table, folder / name / f"{part}.parquet", **PLAIN)
            for stays, columns in timeline.items():
                table = rows[Path(stays).name]
                if "token_order" in table.column_names:
                    of_event = meant.take(pc.subtract(table["token_order"], ONE))
                    for name in meant.column_names:
                        table = table.append_column(name, of_event[name])
                ascending = [name for name in ASCENDING if name in columns]
                write_table(
                    table.select(columns),
                    Path(stays) / f"{part}.parquet",
                    compression="zstd",
                    use_dictionary=[name for name in columns if name not in ascending],
                    write_statistics=["person_id"],
                    column_encoding=dict.fromkeys(ascending, "DELTA_BINARY_PACKED"),
                )

        self.side_by_side(write, histories)

    def write_tokens(
        self,
        folder: Path,
        parts: dict[str, dict[str, str | None]],
        rows: str,
        words: dict[str, str],
        names: dict[str, str],
        counts: str,
    ) -> None:
        """Write a file of tokens for each part; to a table, how many training has.

        `rows`: the folder that order() wrote to.
        """
        known = Words.of({key: self.query(query) for key, query in words.items()})
        named = {
            key: self.query(query)["name"].combine_chunks()
            for key, query in names.items()
        }

        def write(part: str) -> np.ndarray:
            tables = {
                key: self.query(query) if query else None
                for key, query in parts[part].items()
            }
            for name in ("visits", "events"):
                file = pq.ParquetFile(Path(rows) / name / f"{part}.parquet")
                tables[name] = file.read()
            return write_tokens(
                known, **tables, names=named, path=folder / f"{part}.parquet"
            )

        nothing = np.zeros((2, len(named["token"])), dtype=np.int64)
        train_count, train_persons = sum(self.side_by_side(write, parts), nothing)
        counted = {
            "token_id": arrow(np.arange(len(train_count), dtype=np.int32)),
            "train_count": arrow(train_count),
            "train_persons": arrow(train_persons),
        }
        cursor = self.connection.cursor()
        cursor.register("counted", pa.table(counted))
        cursor.execute(f"create or replace table {counts} as from counted")
        cursor.unregister("counted")

    def copy(self, folder: Path, query: str) -> None:
        """Write the rows of a query, in the order of their files' names."""
        reader = self.connection.cursor().sql(query).to_arrow_reader(ROWS_PER_FILE)
        # dictionaries of ids of rows would be as long as the column
        words = [
            field.name
            for field in reader.schema
            if not pa.types.is_int64(field.type) or "concept" in field.name
        ]
        emptied(folder)

        def write(part: int, rows: pa.Table) -> None:
            path = folder / f"part-{part:05d}.parquet"
            write_table(rows, path, compression="zstd", use_dictionary=words)

        write(0, empty(reader.schema))  # stays, if there are no rows
        batches = (pa.Table.from_batches([batch]) for batch in reader)
        for _ in in_turn(lambda part: write(*part), enumerate(batches), self.threads()):
            pass

    def walk(self, folder: Path, sequences: str, language: dict[str, str]) -> None:
        """Walk the grammar over sequences: a file of them, in no order."""
        if not was_walked(folder):
            known = self.language(language)
            walk(known, self.batches(sequences), folder, self.threads())

    def read(
        self,
        folder: Path,
        sequences: str,
        language: dict[str, str],
        meanings: str,
        tables: str,
        drawn: str,
    ) -> None:
        """Read persons, visits, events and counts of tokens of whole sequences: files.

        Queries ask for what each token means, in the order of ids (`meanings`), for the
        `tables` of events, each with a folder of its own, and for the numbers that the
        bins of `events_with_bins` stand for, by event_id (`drawn`).
        """
        known, meant = self.language(language), self.query(meanings)
        table_of_token = meant["source_table"].combine_chunks().dictionary_encode()
        of_tables = table_of_token.dictionary.to_pylist()
        of_tables += self.query(tables)["source_table"].to_pylist()
        of_tables = list(dict.fromkeys(of_tables))  # the vocabulary may lack some
        code_of_token = numbers(filled(table_of_token.indices, -1))
        meant = pa.table(
            {
                name: column.combine_chunks().dictionary_encode()
                if pa.types.is_string(column.type)
                else column
                for name, column in zip(meant.column_names, meant.columns, strict=True)
                if name != "source_table"
            }
        )

        no_numbers = self.numbers_of(joined(empty(histories.EVENTS), meant), drawn)

        def made(item: tuple[pa.RecordBatch, int, int]) -> dict[str, pa.Table]:
            rows = histories.rows_of(known, *item)
            events = rows.pop("events").combine_chunks()
            code = code_of_token[numbers(events["token_id"])]
            if (code < 0).any():
                raise RuntimeError("the vocabulary has an event without a source_table")
            events = joined(events, meant)
            has = Columns(events.select(["has_number", "has_quantity"]))
            is_there = (has.values("has_number") | has.values("has_quantity")) > 0
            found = no_numbers
            if is_there.any():
                found = self.numbers_of(events.filter(arrow(is_there)), drawn)
            events = with_numbers(events, found, is_there)
            for place, table in enumerate(of_tables):
                here = arrow(code == place)
                rows[f"events/source_table={table}"] = events.filter(here)
            return rows

        counts = np.zeros(len(known.kinds), dtype=np.int64)

        def numbered() -> Iterator[tuple[pa.RecordBatch, int, int]]:
            for batch in self.batches(sequences):
                yield batch, int(counts @ known.visits), int(counts @ known.events)
                counts[:] += histories.counts_of(known, batch)

        with ExitStack() as stack:
            files: dict[str, Rows] = {}
            for rows in in_turn(made, numbered(), self.threads()):
                for name, table in rows.items():
                    if name not in files:
                        files[name] = stack.enter_context(Rows(folder / name))
                    files[name].add(table)
        token_ids = np.flatnonzero(counts)
        with Rows(folder / "tokens") as tokens:
            tokens.add(
                pa.table(
                    {
                        "token_id": arrow(token_ids.astype(np.int32)),
                        "token_count": arrow(counts[token_ids]),
                    }
                )
            )

    def numbers_of(self, events: pa.Table, drawn: str) -> pa.Table:
        """Ask for the numbers of events, by event_id."""
        cursor = self.connection.cursor()
        cursor.register("events_with_bins", events)
        found = cursor.sql(drawn).to_arrow_table().combine_chunks()
        cursor.unregister("events_with_bins")
        return found

    def language(self, queries: dict[str, str]) -> Language:
        """Look up the language that sequences are written in."""
        return Language.of({key: self.query(text) for key, text in queries.items()})

    def side_by_side(self, function: Any, items: Any) -> list[Any]:
        """Call a function for each item, as many at once as DuckDB has threads.

        Not more than it has gigabytes: each part of a million persons needs up to one.
        """
        memory = megabytes_of(str((self.creds.settings or {}).get("memory_limit", "")))
        at_once = min(self.threads(), max(memory // 1024, 1))
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(function, items))

    def threads(self) -> int:
        """Return how many threads DuckDB has."""
        return int((self.creds.settings or {}).get("threads", 1))

    def batches(self, query: str) -> Iterator[pa.RecordBatch]:
        """Yield the sequences of a query."""
        cursor = self.connection.cursor()
        reader = cursor.sql(query).to_arrow_reader(SEQUENCES_PER_BATCH)
        return grouped(reader.schema, reader)

    def query(self, query: str) -> pa.Table:
        """Return the rows of a query."""
        return self.connection.cursor().sql(query).to_arrow_table()


def joined(rows: pa.Table, known: pa.Table) -> pa.Table:
    """Put what is known of each token_id in its place."""
    found = known.take(rows["token_id"])
    for name in known.column_names:
        rows = rows.append_column(name, found[name])
    return rows.drop_columns("token_id")


def with_numbers(events: pa.Table, found: pa.Table, is_there: np.ndarray) -> pa.Table:
    """Put the numbers found of some events (E,) in place of has_number and so on."""
    row = arrow(np.cumsum(is_there) - 1, ~is_there)
    for name in found.column_names[1:]:
        column = found[name].take(row)
        if pa.types.is_boolean(column.type):
            column = filled(column, 0)
        events = events.append_column(name, column)
    return events.drop_columns(["has_number", "has_quantity"])
