"""Packing: one row per person, every token in it, in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omop_gpt.pack import SPLITS, name_plainly, pack, sequences, start_spark

COLUMNS = ("split", "person_id", "token_ids", "token_count", "visit_count")


def make_people(rng: np.random.Generator, people: int) -> list[dict]:
    """Make people with any 64-bit id, some with one token, some with many."""
    ids = rng.choice(2**62, people, replace=False) * rng.choice([-2, 1], people)
    edges = [0, -1, 2**63 - 1, -(2**63)]
    ids[: min(people, 4)] = edges[: min(people, 4)]
    return [
        {
            "person_id": int(person_id),
            "split": str(rng.choice(SPLITS)),
            "token_ids": rng.integers(0, 2**31, length).tolist(),
            "is_visit": rng.random(length).round().astype(bool).tolist(),
        }
        for person_id in ids
        for length in [int(rng.choice([1, 2, 7, 40]))]
    ]


def rows_of(people: list[dict]) -> pa.Table:
    """Lay the people's tokens out as the timeline has them: a row per token."""
    lengths = [len(p["token_ids"]) for p in people]
    return pa.table(
        {
            "person_id": pa.array(
                np.repeat(np.array([p["person_id"] for p in people], np.int64), lengths)
            ),
            "split": pa.array(
                np.repeat([p["split"] for p in people], lengths).tolist(), pa.string()
            ),
            "token_id": pa.array(
                [t for p in people for t in p["token_ids"]], pa.int32()
            ),
            "is_visit": pa.array(
                [v for p in people for v in p["is_visit"]], pa.bool_()
            ),
        }
    )


def check(packed: list[dict], people: list[dict]) -> None:
    """Compare packed rows with the people, in order."""
    assert [row["person_id"] for row in packed] == [p["person_id"] for p in people]
    for row, person in zip(packed, people, strict=True):
        assert set(row) == set(COLUMNS)
        assert row["split"] == person["split"]
        assert row["token_ids"] == person["token_ids"]
        assert row["token_count"] == len(person["token_ids"])
        assert row["visit_count"] == sum(person["is_visit"])


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 40, 41, 100, 10_000])
@pytest.mark.parametrize("people", [1, 2, 60])
def test_people_come_out_whole_whatever_the_batches(rows, people):
    made = make_people(np.random.default_rng(rows * people), people)
    table = rows_of(made)
    out = list(sequences(table.to_batches(max_chunksize=rows)))
    found = pa.Table.from_batches(out)
    assert tuple(found.column_names) == COLUMNS
    assert found.schema.field("token_ids").type == pa.list_(pa.int32())
    assert found.schema.field("token_count").type == pa.int32()
    assert found.schema.field("visit_count").type == pa.int32()
    check(found.to_pylist(), made)
    assert sum(found["token_count"].to_pylist()) == table.num_rows
    assert all(len(set(batch["person_id"].to_pylist())) == len(batch) for batch in out)


def test_people_go_on_as_soon_as_they_are_whole():
    """Not all at the end: a file of any size passes through a few batches."""
    made = make_people(np.random.default_rng(0), 50)
    given = 0

    def batches():
        nonlocal given
        for batch in rows_of(made).to_batches(max_chunksize=10):
            given += len(batch)
            yield batch

    done = 0
    for batch in sequences(batches()):
        done += sum(batch["token_count"].to_pylist())
        assert given - done <= 40 + 10


def test_empty_batches_change_nothing():
    made = make_people(np.random.default_rng(1), 9)
    table = rows_of(made)
    empty = table.slice(0, 0).to_batches() or [
        pa.RecordBatch.from_pylist([], schema=table.schema)
    ]
    assert list(sequences([])) == []
    assert list(sequences(empty)) == []
    batches = []
    for batch in table.to_batches(max_chunksize=3):
        batches += [*empty, batch, *empty]
    check(pa.Table.from_batches(sequences(batches)).to_pylist(), made)


def test_plain_names(tmp_path: Path):
    """Files are numbered by their persons, not as Spark happens to number them."""
    for split, parts in {"train": {"0-b": 5, "1-a": -7}, "holdout": {"0-c": 1}}.items():
        folder = tmp_path / f"split={split}"
        folder.mkdir()
        for part, person_id in parts.items():
            table = pa.table({"person_id": [person_id + 1, person_id]})
            pq.write_table(table, folder / f"part-{part}.zstd.parquet")
            (folder / f".part-{part}.zstd.parquet.crc").write_text("")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / "._SUCCESS.crc").write_text("")
    counts = name_plainly(tmp_path)
    assert counts == {"train": 2, "validation": 0, "holdout": 1, "reserve": 0}
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert found == [
        "holdout", "holdout/part-00000.parquet", "reserve", "train",
        "train/part-00000.parquet", "train/part-00001.parquet", "validation",
    ]  # fmt: skip
    for part, person_id in enumerate((-7, 5)):
        path = tmp_path / "train" / f"part-{part:05d}.parquet"
        assert pq.ParquetFile(path).read()["person_id"][1].as_py() == person_id


@pytest.mark.spark
def test_spark_packs_the_same(tmp_path: Path):
    rng = np.random.default_rng(2)
    files = [make_people(rng, 40), [], make_people(rng, 1)[:1]]
    files[2][0]["person_id"] = 77
    tokens = tmp_path / "timeline" / "tokens"
    tokens.mkdir(parents=True)
    for n, people in enumerate(files):
        table = rows_of(people)
        kinds = [
            str(rng.choice(["visit", "no_visit"] if visit else ["event", "gap_days"]))
            for visit in table["is_visit"].to_pylist()
        ]
        table = table.drop_columns(["is_visit"]).append_column(
            "kind", pa.array(kinds, pa.string())
        )
        pq.write_table(table, tokens / f"part-{n}.parquet")
    spark = start_spark(2, "512m")
    try:
        pack(str(tmp_path / "timeline"), str(tmp_path / "packed"), spark)
    finally:
        spark.stop()
    name_plainly(tmp_path / "packed")
    people = {p["person_id"]: p for file in files for p in file}
    for split in SPLITS:
        for path in sorted((tmp_path / "packed" / split).glob("*.parquet")):
            rows = pq.ParquetFile(path).read().to_pylist()
            found = [people.pop(row["person_id"]) for row in rows]
            check([{**row, "split": split} for row in rows], found)
    assert not people
