"""Columns of Arrow tables as numpy has them: numbers, and where they are NULL."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from omop_gpt.pack import arrow, filled, numbers


class Columns:
    """Columns of a table (N,) as numbers, NULL or not.

    Dates are days since 1970, and what is true is 1.
    """

    def __init__(self, table: pa.Table) -> None:
        """Keep them, each in one piece."""
        self.columns = {
            name: table[name].combine_chunks() for name in table.column_names
        }
        for name, column in self.columns.items():
            if pa.types.is_date(column.type):
                self.columns[name] = column.view(pa.int32())
            elif pa.types.is_boolean(column.type):
                self.columns[name] = column.cast(pa.uint8())
        self.size = table.num_rows

    def has(self, name: str) -> bool:
        """Tell whether a column is there, and not NULL in all rows."""
        return name in self.columns and self.columns[name].null_count < self.size

    def nulls(self, name: str) -> np.ndarray:
        """Tell where a column is NULL (N,)."""
        column = self.columns[name]
        if column.null_count in (0, self.size):
            return np.full(self.size, column.null_count > 0)
        return numbers(column.is_null().cast(pa.uint8())).view(bool)

    def rows(self, name: str) -> np.ndarray:
        """Return the rows where a column is not NULL (R,)."""
        return np.flatnonzero(~self.nulls(name))

    def values(
        self, name: str, rows: np.ndarray | None = None, null: int = 0
    ) -> np.ndarray:
        """Return the values of a column (N,), or those of rows (R,)."""
        column = self.columns[name]
        values = numbers(filled(column, null) if column.null_count else column)
        return values if rows is None else values[rows]

    def parts(self, name: str) -> list[np.ndarray]:
        """Return what two rows must be alike in to be alike: arrays (N,)."""
        values = [self.values(name)]
        return [self.nulls(name), *values] if self.columns[name].null_count else values

    def groups(self, name: str) -> Iterator[tuple[str, np.ndarray]]:
        """Tell each word of a column, and its rows (R,)."""
        words = self.columns[name].dictionary_encode()
        codes = numbers(words.indices)
        for code, word in enumerate(words.dictionary.to_pylist()):
            yield word, np.flatnonzero(codes == code)

    def take(
        self, name: str, rows: np.ndarray, is_missing: np.ndarray | None = None
    ) -> pa.Array:
        """Return a column of rows (R,); NULL also where they are missing (R,)."""
        column = self.columns[name]
        if column.null_count == self.size:
            return pa.nulls(len(rows), column.type)
        return column.take(arrow(rows, is_missing))


def new_year(days: np.ndarray) -> np.ndarray:
    """Return 1 January of the year of each date, days since 1970 (N,)."""
    years = days.astype("datetime64[D]").astype("datetime64[Y]")
    return years.astype("datetime64[D]").astype(np.int32)


def table_of(schema: pa.Schema, **columns: pa.Array) -> pa.Table:
    """Make a table of columns by name."""
    return pa.Table.from_arrays(
        [
            columns[field.name].view(field.type)
            if pa.types.is_date(field.type)
            else columns[field.name].cast(field.type)
            for field in schema
        ],
        schema=schema,
    )
