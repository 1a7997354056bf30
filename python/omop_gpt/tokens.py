"""Name and number the timeline's tokens, and write them as Parquet files.

In come the token ids of the steps of histories; out go TOKENS in the order of persons
and positions. Names repeat a vocabulary of some thousand words, so they are written as
the dictionaries that they are: DuckDB would look up and compress each name anew.
Imports neither dbt nor Spark.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from omop_gpt.pack import arrow, numbers, positions

NAME = pa.dictionary(pa.int32(), pa.string())
TOKENS = pa.schema(
    {
        "person_id": pa.int64(),
        "split": NAME,
        "position": pa.int32(),
        "token_id": pa.int32(),
        "token": NAME,
        "kind": NAME,
    }
)
ROWS_PER_GROUP = 1_000_000


def write_tokens(steps: pa.Table, names: dict[str, pa.Array], path: Path) -> None:
    """Write the tokens of whole persons to a file: TOKENS.

    `steps` has a row per token in any order: person_id, its place among those of the
    person, split_order and token_id, which are rows of `names`: of `split`, and of
    `token` and `kind`.
    """
    person_id, place, split_order, token_id = (
        numbers(steps[name])
        for name in ("person_id", "place", "split_order", "token_id")
    )
    order = order_of(person_id, place)
    if order is not None:
        person_id, split_order, token_id = (
            column[order] for column in (person_id, split_order, token_id)
        )
    # what the language cannot say is -1, and has no name
    is_unknown = token_id < 0
    known = np.maximum(token_id, 0)
    kinds = names["kind"].dictionary_encode()
    kind_of = numbers(kinds.indices)
    columns = [
        arrow(person_id),
        named(split_order.astype(np.int32), names["split"]),
        arrow(positions(person_id)[1].astype(np.int32)),
        arrow(token_id),
        named(known, names["token"], is_unknown),
        named(kind_of[known], kinds.dictionary, is_unknown),
    ]
    pq.write_table(
        pa.Table.from_arrays(columns, schema=TOKENS),
        path,
        compression="zstd",
        row_group_size=ROWS_PER_GROUP,
        use_dictionary=["split", "token", "kind"],
        write_statistics=["person_id", "token_id"],
        # they go up by steps that repeat
        column_encoding={
            "person_id": "DELTA_BINARY_PACKED",
            "position": "DELTA_BINARY_PACKED",
        },
    )


def order_of(person_id: np.ndarray, place: np.ndarray) -> np.ndarray | None:
    """Return the rows (N,) in the order of persons and places; None: as they lie.

    DuckDB hands over a few stretches that are in order: a join moves some of the last.
    """
    is_behind = (person_id[1:] < person_id[:-1]) | (
        (person_id[1:] == person_id[:-1]) & (place[1:] < place[:-1])
    )
    starts = np.append(0, np.flatnonzero(is_behind) + 1)
    if len(starts) == 1:
        return None
    ends = np.append(starts[1:], len(person_id)) - 1
    stretches = np.lexsort((place[starts], person_id[starts]))
    firsts, lasts = starts[stretches][1:], ends[stretches][:-1]
    follows = (person_id[lasts] < person_id[firsts]) | (
        (person_id[lasts] == person_id[firsts]) & (place[lasts] < place[firsts])
    )
    if follows.all():
        return np.concatenate([np.arange(starts[n], ends[n] + 1) for n in stretches])
    return np.lexsort((place, person_id))


def named(
    indices: np.ndarray, names: pa.Array, is_unknown: np.ndarray | None = None
) -> pa.DictionaryArray:
    """Make names of indices (N,), without copying a name."""
    indices = arrow(indices)
    if is_unknown is not None and is_unknown.any():
        is_known = arrow((~is_unknown).view(np.int8)).cast(pa.bool_())
        indices = pc.if_else(is_known, indices, pa.nulls(len(indices), pa.int32()))
    return pa.DictionaryArray.from_arrays(indices, names)
