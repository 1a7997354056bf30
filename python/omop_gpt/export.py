"""The synthetic CDM where a team works with it: one DuckDB file, or PostgreSQL.

Knows files, types and keys; what the tables say, decode has decided.
"""

from __future__ import annotations

import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omop_gpt.flags import flag
from omop_gpt.grammar import read_csv
from omop_gpt.step import InputError
from omop_gpt.warehouse import project_folder

log = logging.getLogger(__name__)
POSTGRES_TYPES = {"VARCHAR": "text", "DOUBLE": "double precision"}


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write the synthetic CDM as one DuckDB file, or into a PostgreSQL database."""

    omop_folder: str = flag("The tables: what decode wrote.")
    duckdb_file: str = flag("DuckDB file to make; its tables are in schema main.", "")
    postgres: str = flag(
        "PostgreSQL database: a URI or libpq's keywords, such as `host=… dbname=…`. "
        "Leave the password to PGPASSWORD or a password file.",
        "",
    )
    schema: str = flag(
        "PostgreSQL's schema for the tables; it must hold none of them.", "cdm"
    )


def export(config: ExportConfig) -> None:
    """Write all tables to the places that are named, each whole or not at all.

    Raises InputError where there are no tables, a place is taken, or a database cannot
    be reached.
    """
    folder = Path(config.omop_folder)
    quoted = str(folder).replace("'", "''")
    tables = {
        path.name: (
            f"read_parquet('{quoted}/{path.name}/*.parquet', hive_partitioning = false)"
        )
        for path in sorted(folder.glob("*/"))
        if any(path.glob("*.parquet"))
    }
    if "person" not in tables:
        raise InputError(f"{folder} holds no OMOP tables: name what decode wrote.")
    if not (config.duckdb_file or config.postgres):
        raise InputError("export needs --duckdb_file or --postgres: name a place.")
    if not config.schema.isidentifier():
        raise InputError(f"--schema {config.schema}: letters, digits and _ alone.")
    if config.duckdb_file:
        to_duckdb(tables, Path(config.duckdb_file))
    if config.postgres:
        to_postgres(tables, config.postgres, config.schema)


def to_duckdb(tables: dict[str, str], file: Path) -> None:
    """Copy tables into a new DuckDB file."""
    import duckdb

    if file.exists():
        raise InputError(f"{file} is there already: name another --duckdb_file.")
    partial = file.with_name(f".{file.name}.partial")
    partial.unlink(missing_ok=True)
    with duckdb.connect(str(partial)) as con:
        for name, relation in tables.items():
            con.execute(f"create table {name} as from {relation}")
    partial.rename(file)
    log.info("wrote %d tables to %s", len(tables), file)


def primary_keys() -> dict[str, str]:
    """Return the key of each table that has one, as the quality checks name it."""
    return {
        row["cdm_table"]: row["cdm_field"]
        for row in read_csv(project_folder() / "seeds/omop/quality_checks.csv")
        if row["check_name"] == "isPrimaryKey"
    }


def to_postgres(tables: dict[str, str], database: str, schema: str) -> None:
    """Copy tables into a PostgreSQL database, in one transaction.

    With primary keys, and an index on each person_id.
    """
    try:
        import psycopg
    except ImportError:
        raise InputError(
            "--postgres needs psycopg: pip install 'omop-gpt[postgres]'."
        ) from None
    try:
        connection = psycopg.connect(database)
    except psycopg.Error as error:
        raise InputError(f"--postgres: {' '.join(str(error).split())}") from None
    with connection:
        taken = connection.execute(
            "select table_name from information_schema.tables "
            "where table_schema = %s and table_name = any(%s) order by 1",
            (schema, list(tables)),
        ).fetchall()
        if taken:
            raise InputError(
                f"schema {schema} has a table {taken[0][0]} already: name another "
                "--schema, or drop it."
            )
        try:
            connection.execute(f'create schema if not exists "{schema}"')
            copy_tables(tables, connection, schema)
        except psycopg.Error as error:
            raise InputError(
                f"--postgres: {' '.join(str(error).split())} (nothing was written)"
            ) from None
    log.info("wrote %d tables to schema %s", len(tables), schema)


def copy_tables(tables: dict[str, str], connection: Any, schema: str) -> None:
    """Create, fill and index each table."""
    import duckdb

    keys = primary_keys()
    started, written = time.time(), 0
    con = duckdb.connect()
    for number, (name, relation) in enumerate(tables.items(), 1):
        table = f'"{schema}".{name}'
        columns = con.execute(f"describe from {relation}").fetchall()
        types = [
            f"{column} {POSTGRES_TYPES.get(kind, kind)}" for column, kind, *_ in columns
        ]
        connection.execute(f"create table {table} ({', '.join(types)})")
        with tempfile.TemporaryDirectory() as folder:
            text = Path(folder) / f"{name}.csv"
            (rows,) = con.execute(
                f"copy (from {relation}) to '{text}' (format csv, header false)"
            ).fetchone()
            with (
                text.open("rb") as lines,
                connection.cursor().copy(
                    f"copy {table} from stdin (format csv)"
                ) as copy,
            ):
                while block := lines.read(1 << 20):
                    copy.write(block)
        if name in keys:
            connection.execute(f"alter table {table} add primary key ({keys[name]})")
        if keys.get(name) != "person_id" and "person_id" in [c[0] for c in columns]:
            connection.execute(f"create index on {table} (person_id)")
        written += rows
        log.info(
            "table %d of %d: %s, %s rows; %s rows/s",
            number, len(tables), name, f"{rows:,}",
            f"{written / (time.time() - started):,.0f}",
        )  # fmt: skip
    con.close()
