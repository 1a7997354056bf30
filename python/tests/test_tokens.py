"""The files of tokens: in order, numbered and named, however the rows come."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omop_gpt.tokens import ROWS_PER_GROUP, write_tokens

NAMES = {
    "split": pa.array(["train", "holdout"]),
    "token": pa.array(["[BOS]", "drug:1", "drug:2", "[EOS]"]),
    "kind": pa.array(["bos", "event", "event", "eos"]),
}


def steps_of(rng: np.random.Generator, people: int, least: int = -1) -> pa.Table:
    """Make tokens of people with any 64-bit id, their places ascending with gaps."""
    ids = np.sort(
        rng.choice(2**62, people, replace=False) * rng.choice([-2, 1], people)
    )
    ids[[0, -1]] = -(2**63), 2**63 - 1
    lengths = rng.integers(1, 40, people)
    count = lengths.sum()
    return pa.table(
        {
            "person_id": np.repeat(ids, lengths),
            "place": np.cumsum(rng.integers(1, 50, count)),
            "split_order": np.repeat(rng.integers(0, 2, people), lengths).astype(
                np.int8
            ),
            "token_id": rng.integers(least, 4, count, np.int32),
        }
    )


def write(steps: pa.Table, folder: Path) -> bytes:
    """Return the bytes of the file of these rows."""
    write_tokens(steps, NAMES, folder / "tokens.parquet")
    return (folder / "tokens.parquet").read_bytes()


def test_tokens_are_numbered_in_each_person_and_named(tmp_path):
    steps = steps_of(np.random.default_rng(1), 50)
    write(steps, tmp_path)
    rows = pq.read_table(tmp_path / "tokens.parquet").to_pylist()
    assert len(rows) == steps.num_rows
    last_person, position = None, 0
    for row, step in zip(rows, steps.to_pylist(), strict=True):
        position = position + 1 if row["person_id"] == last_person else 1
        last_person = row["person_id"]
        known = step["token_id"] >= 0
        assert row == {
            "person_id": step["person_id"],
            "split": NAMES["split"][step["split_order"]].as_py(),
            "position": position,
            "token_id": step["token_id"],
            "token": NAMES["token"][step["token_id"]].as_py() if known else None,
            "kind": NAMES["kind"][step["token_id"]].as_py() if known else None,
        }


@pytest.mark.parametrize("cuts", [[], [100], [3, 4, 200], "all"])
def test_the_order_that_rows_come_in_does_not_show(tmp_path, cuts):
    rng = np.random.default_rng(2)
    steps = steps_of(rng, 40)
    order = np.arange(steps.num_rows)
    stretches = np.split(order, cuts) if cuts != "all" else [rng.permutation(order)]
    moved = steps.take(pa.array(np.concatenate(stretches[::-1])))
    assert write(moved, tmp_path) == write(steps, tmp_path)


def test_stretches_that_reach_into_one_another_are_sorted(tmp_path):
    steps = steps_of(np.random.default_rng(3), 40)
    order = np.arange(steps.num_rows)
    moved = steps.take(pa.array(np.concatenate([order[::2], order[1::2]])))
    assert write(moved, tmp_path) == write(steps, tmp_path)


def test_files_are_cut_into_groups_of_one_size(tmp_path):
    count = ROWS_PER_GROUP + 1
    steps = pa.table(
        {
            "person_id": np.arange(count),
            "place": np.arange(count),
            "split_order": np.zeros(count, np.int8),
            "token_id": np.zeros(count, np.int32),
        }
    )
    write(steps, tmp_path)
    file = pq.ParquetFile(tmp_path / "tokens.parquet")
    assert [file.metadata.row_group(n).num_rows for n in range(2)] == [count - 1, 1]


def test_nothing_imports_pandas(tmp_path):
    steps = steps_of(np.random.default_rng(4), 20, least=0)
    pq.write_table(steps, tmp_path / "steps.parquet")
    names = pa.table({"token": NAMES["token"], "kind": NAMES["kind"]})
    pq.write_table(names, tmp_path / "names.parquet")
    code = """
import sys
from pathlib import Path
import pyarrow.parquet as pq
from omop_gpt.pack import make_folders, pack_file
from omop_gpt.tokens import write_tokens
folder = Path(sys.argv[1])
table = pq.ParquetFile(folder / "names.parquet").read()
names = {name: table[name].combine_chunks() for name in ("token", "kind")}
names["split"] = names["kind"]
steps = pq.ParquetFile(folder / "steps.parquet").read()
write_tokens(steps, names, folder / "tokens.parquet")
make_folders(folder)
for kind in names["kind"].to_pylist():
    (folder / kind).mkdir(exist_ok=True)
pack_file(folder / "tokens.parquet", folder)
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
