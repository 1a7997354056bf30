"""What the dbt half asks of Python: a plugin of dbt-duckdb, named in profiles.yml.

Macros call it as adapter.store_relation('plugin', …, config): `config` says what to do.
Runs DuckDB's statements side by side, as dbt's own macros cannot, each on a cursor of
its own: they see what was committed before.
"""

from __future__ import annotations

import shutil
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dbt.adapters.duckdb.plugins import BasePlugin

from omop_gpt import histories
from omop_gpt.encode import megabytes_of
from omop_gpt.histories import Language
from omop_gpt.ordering import ordered
from omop_gpt.pack import arrow
from omop_gpt.tokens import Words, write_tokens

ROWS_PER_GROUP = 500_000
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
TOKENS_PER_BATCH = 1_000_000  # of some 100 bytes each, while their rows are read
MAKERS = {
    "walked": histories.walked_batch,
    "persons": histories.told_persons,
    "visits": histories.told_visits,
    "events": histories.told_events,
}


class Plugin(BasePlugin):
    """Orders histories, writes the timeline's tokens, or reads sequences."""

    def configure_connection(self, conn: Any) -> None:
        """Keep the connection that cursors are made of."""
        self.connection = conn

    def store(self, target_config: Any) -> None:
        """Do what the config names: order `histories`, `made` rows, or else tokens."""
        config = target_config.config
        if "made" in config:
            self.fill(**config)
            return
        folder = Path(target_config.location.path)
        if "histories" in config:
            self.order(folder, **config)
        else:
            self.write_tokens(folder, **config)

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
            # an earlier run may have left more parts than there are now
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir(parents=True)
        meant = self.query(meanings)

        def write(part: str) -> None:
            tables = {key: self.query(query) for key, query in histories[part].items()}
            rows = dict(zip(("visits", "events"), ordered(**tables), strict=True))
            for name, table in rows.items():
                write_table(
                    table,
                    folder / name / f"{part}.parquet",
                    compression="none",
                    use_dictionary=False,
                    write_statistics=False,
                )
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

    def fill(
        self,
        made: str,
        sequences: str,
        into: str,
        insert: str,
        language: dict[str, str],
    ) -> None:
        """Insert what is made of sequences, batch by batch, in their order.

        `insert`: the query that ends in what was made, rows_made.
        """
        lookups = Language.of({key: self.query(text) for key, text in language.items()})
        (size,) = self.query(
            f"select coalesce(avg(len(token_ids)), 1) as size from ({sequences})"
        )["size"].to_pylist()
        batches = (
            self.connection.cursor()
            .sql(sequences)
            .to_arrow_reader(int(TOKENS_PER_BATCH / max(size, 10)) or 1)
        )
        cursor = self.connection.cursor()

        def add(rows: pa.Table) -> None:
            cursor.register("rows_made", rows)
            cursor.execute(f"insert into {into} {insert}")
            cursor.unregister("rows_made")

        with ThreadPoolExecutor(self.threads()) as pool:
            waiting: deque[Future] = deque()
            for batch in batches:
                waiting.append(pool.submit(MAKERS[made], lookups, batch))
                if len(waiting) > self.threads():
                    add(waiting.popleft().result())
            while waiting:
                add(waiting.popleft().result())

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

    def query(self, query: str) -> pa.Table:
        """Return the rows of a query."""
        return self.connection.cursor().sql(query).to_arrow_table()
