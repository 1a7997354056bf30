"""What the dbt half asks of Python: a plugin of dbt-duckdb, named in profiles.yml.

Macros call it as adapter.store_relation('plugin', …, config): `config` says what to do.
Runs DuckDB's statements side by side, as dbt's own macros cannot, each on a cursor of
its own: they see what was committed before.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
from dbt.adapters.duckdb.plugins import BasePlugin

from omop_gpt.tokens import write_tokens


class Plugin(BasePlugin):
    """Runs batches of statements, or writes the files of the timeline's tokens."""

    def configure_connection(self, conn: Any) -> None:
        """Keep the connection that cursors are made of."""
        self.connection = conn

    def store(self, target_config: Any) -> None:
        """Do what the config names: `batches` of statements, or files of `queries`."""
        config = target_config.config
        if "batches" in config:
            self.side_by_side(self.run, config["batches"])
            return
        names = {
            name: self.query(query)["name"].combine_chunks()
            for name, query in config["names"].items()
        }
        folder = Path(target_config.location.path)

        def write(name: str) -> None:
            query = config["queries"][name]
            write_tokens(self.query(query), names, folder / f"{name}.parquet")

        self.side_by_side(write, config["queries"])

    def side_by_side(self, function: Any, items: Any) -> None:
        """Call a function for each item, as many at once as DuckDB has threads."""
        threads = int((self.creds.settings or {}).get("threads", 1))
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(function, items))

    def run(self, statements: list[str]) -> None:
        """Run statements in turn."""
        cursor = self.connection.cursor()
        for statement in statements:
            cursor.execute(statement)
        cursor.close()

    def query(self, query: str) -> pa.Table:
        """Return the rows of a query."""
        return self.connection.cursor().sql(query).to_arrow_table()
