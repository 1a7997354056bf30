"""The files of tokens: placed as by the queries, in order, numbered and named."""

from __future__ import annotations

import csv
import subprocess
import sys
from io import StringIO
from pathlib import Path

import duckdb
import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from omop_gpt import tokens
from omop_gpt.tokens import CLOSES, OPENS, ROWS_PER_GROUP, Words, write_tokens

PROJECT = Path(__file__).parents[2]
UNIT_TESTS = "models/intermediate/encode/_encode__tokens__unit_tests.yml"
# what the unit tests give, with the types that it has in the warehouse
TABLES = {
    "int_vocabulary": "token_id int, token varchar, kind varchar, number bigint, "
    "concept_id bigint",
    "int_event_tokens": "token_order int, token varchar",
    "int_days_spelled": "role varchar, days int, token_1 varchar, token_2 varchar, "
    "token_3 varchar",
    "int_persons_started": "person_id bigint, start_year int, age_years int, "
    "gender_concept_id bigint, race_concept_id bigint, ethnicity_concept_id bigint, "
    "split varchar default 'train', part int",
    "int_histories_ordered": "part int default 0, person_id bigint, step_order bigint, "
    "step tinyint, opens_visit boolean, is_loose boolean, visit_concept_id bigint, "
    "visit_start_date date, closing_days int, "
    "closing_discharged_to_concept_id bigint, gap_days int, token_order int, "
    "move_days int, event_date date, hour int, is_new_hour boolean default false, "
    "value_as_number double, value_bin int, operator_concept_id bigint, "
    "value_as_concept_id bigint, quantity double, quantity_bin int, days_supply int, "
    "end_date date",
}
SPLITS = ["train", "validation", "holdout", "reserve"]


def cases() -> list[dict]:
    return yaml.safe_load((PROJECT / UNIT_TESTS).read_text())["unit_tests"]


def rows_of(table: dict) -> list[dict]:
    if table.get("format") == "csv":
        return list(csv.DictReader(StringIO(table["rows"])))
    return table["rows"]


class Queries:
    """The queries of the macros that write tokens, of tables of their own."""

    def __init__(self, given: list[dict]) -> None:
        self.con = duckdb.connect()
        for name, columns in TABLES.items():
            self.con.execute(f"create table {name} ({columns})")
        for table in given:
            name = table["input"].split("'")[1]
            for row in rows_of(table):
                there = {
                    key: value for key, value in row.items() if value not in ("", None)
                }
                self.con.execute(
                    f"insert into {name} ({', '.join(there)}) "
                    f"values ({', '.join('?' * len(there))})",
                    list(there.values()),
                )
        # a unit test need not say in which part its persons are
        self.con.execute(
            "update int_persons_started as persons set part = steps.part "
            "from int_histories_ordered as steps "
            "where steps.person_id = persons.person_id"
        )
        self.returned: list = []
        environment = jinja2.Environment(extensions=["jinja2.ext.do"])
        self.macros = environment.from_string(
            # what a macro returns, Jinja alone cannot hand to another
            "".join(
                (PROJECT / f"macros/{name}.sql").read_text()
                for name in ("runs", "write_parquet")
            ).replace("macro splits()", "macro known_here()"),
            globals={
                "ref": lambda name: name,
                "splits": lambda: SPLITS,
                "is_new": lambda person_id: "true",
                "days_between": lambda first, last: f"cast({last} - {first} as int)",
                "return": self.returned.append,
            },
        ).module

    def table(self, query: str) -> pa.Table:
        return self.con.sql(query).to_arrow_table()

    def words(self) -> Words:
        self.macros.word_queries()
        return Words.of(
            {key: self.table(query) for key, query in self.returned[-1].items()}
        )


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["name"])
def test_tokens_are_placed_as_the_query_places_them(case, tmp_path):
    queries = Queries(case["given"])
    vocabulary = queries.table("select * from int_vocabulary order by token_id")
    size = vocabulary["token_id"][-1].as_py() + 1
    names = {
        "split": pa.array(SPLITS),
        "token": pa.array([f"word {n}" for n in range(size)]),
        "kind": pa.array(["kind"] * size),
    }
    found = []
    for (part,) in queries.con.sql(
        "select distinct part from int_histories_ordered order by part"
    ).fetchall():
        write_tokens(
            queries.words(),
            steps=queries.table(queries.macros.steps_of_part(part)),
            persons=queries.table(queries.macros.persons_of_part(part)),
            earlier=None,
            names=names,
            path=tmp_path / "tokens.parquet",
        )
        found += pq.read_table(tmp_path / "tokens.parquet").to_pylist()
    expected, steps = {}, rows_of(case["expect"])
    for row in sorted(steps, key=lambda row: int(row["step_order"])):
        of_person = expected.setdefault(int(row.get("person_id", 1)), [])
        # there may be more places than a unit test looks at, but not fewer tokens
        of_person += [
            int(row[name]) for name in row if name.startswith("token_") and row[name]
        ]
    by_person: dict[int, list[int]] = {}
    for row in found:
        by_person.setdefault(row["person_id"], []).append(row["token_id"])
    assert by_person == expected


# a language of a few words: demographics that all share, ten events
WORD_TABLES = {
    "words": pa.table(
        {
            "token_id": [0, 1, 2, 3, 4, 5, 6],
            "kind": [
                "bos", "eos", "gender", "race", "ethnicity", "year_unknown",
                "age_unknown",
            ],
            "said": [None, None, 0, 0, 0, None, None],
        }
    ),
    "spelled": pa.table(
        {"role": ["gap"], "days": [0]}
        | {f"token_id_{place}": [1] for place in (1, 2, 3)}
    ),
    "events": pa.table({"token_order": range(1, 11), "token_id": range(7, 17)}),
}  # fmt: skip
WORDS = Words.of(WORD_TABLES)
OPENING, END = [0, 5, 6, 2, 3, 4], [1]
NAMES = {
    "split": pa.array(SPLITS),
    "token": pa.array([f"word {n}" for n in range(17)]),
    "kind": pa.array(["bos", "eos"] + ["person"] * 5 + ["event"] * 10),
}
UNSAID = (
    "closing_days", "closing_discharged_to_concept_id", "gap_days", "visit_concept_id",
    "move_days", "new_hour", "value_bin", "operator_concept_id", "value_as_concept_id",
    "quantity_bin", "days_supply", "end_days",
)  # fmt: skip
FLAGS = (
    "opens_visit", "is_loose", "has_date", "is_unbinned_number", "is_unbinned_quantity"
)  # fmt: skip


def histories_of(rng: np.random.Generator, people: int) -> tuple[pa.Table, pa.Table]:
    """Make steps and persons with any 64-bit id; steps ascend with gaps."""
    ids = np.sort(
        rng.choice(2**62, people, replace=False) * rng.choice([-2, 1], people)
    )
    ids[[0, -1]] = -(2**63), 2**63 - 1
    lengths = rng.integers(2, 40, people)
    step = np.ones(lengths.sum(), dtype=np.int8)
    step[np.cumsum(lengths) - lengths] = OPENS
    step[np.cumsum(lengths) - 1] = CLOSES
    is_event = step == 1
    count = len(step)
    steps = pa.table(
        {
            "person_id": np.repeat(ids, lengths),
            "step_order": np.cumsum(rng.integers(1, 50, count)),
            "step": step,
            # 11 is no event of the language
            "token_order": pa.array(
                rng.integers(1, 12, count, np.int32), mask=~is_event
            ),
        }
        | dict.fromkeys(UNSAID, pa.nulls(count, pa.int32()))
        | dict.fromkeys(FLAGS, np.zeros(count, dtype=np.int8))
    )
    zeros = np.zeros(people, dtype=np.int64)
    persons = pa.table(
        {
            "person_id": ids,
            "split_order": rng.integers(0, 4, people, np.int8),
            "start_year": pa.nulls(people, pa.int32()),
            "age_years": pa.nulls(people, pa.int32()),
            "gender_concept_id": zeros,
            "race_concept_id": zeros,
            "ethnicity_concept_id": zeros,
        }
    )
    return steps, persons


def test_tokens_of_training_are_counted(tmp_path, monkeypatch):
    steps, persons = histories_of(np.random.default_rng(5), 50)
    path = tmp_path / "tokens.parquet"
    count, persons_count = write_tokens(WORDS, steps, persons, None, NAMES, path)
    rows = pq.read_table(path).to_pylist()
    is_counted = [row["split"] == "train" and row["token_id"] >= 0 for row in rows]
    told = [row for row, counts in zip(rows, is_counted, strict=True) if counts]
    assert 0 < len(told) < len(rows)
    pairs = {(row["person_id"], row["token_id"]) for row in told}
    for token_id in range(len(NAMES["token"])):
        assert count[token_id] == sum(row["token_id"] == token_id for row in told)
        assert persons_count[token_id] == sum(found == token_id for _, found in pairs)
    monkeypatch.setattr(tokens, "STEPS_PER_PIECE", 7)
    again = write_tokens(WORDS, steps, persons, None, NAMES, path)
    assert again.tolist() == [count.tolist(), persons_count.tolist()]


def write(steps: pa.Table, persons: pa.Table, folder: Path, earlier=None) -> bytes:
    """Return the bytes of the file of these histories."""
    path = folder / "tokens.parquet"
    write_tokens(WORDS, steps, persons, earlier, NAMES, path)
    return path.read_bytes()


def test_tokens_are_numbered_in_each_person_and_named(tmp_path):
    steps, persons = histories_of(np.random.default_rng(1), 50)
    write(steps, persons, tmp_path)
    rows = pq.read_table(tmp_path / "tokens.parquet").to_pylist()
    events: dict[int, list[int]] = {}
    for step in steps.to_pylist():
        of_person = events.setdefault(step["person_id"], [])
        if step["step"] == 1:
            of_person.append(
                6 + step["token_order"] if step["token_order"] < 11 else -1
            )
    expected = [
        {
            "person_id": person["person_id"],
            "split": SPLITS[person["split_order"]],
            "position": position,
            "token_id": token_id,
            "token": NAMES["token"][token_id].as_py() if token_id >= 0 else None,
            "kind": NAMES["kind"][token_id].as_py() if token_id >= 0 else None,
        }
        for person in persons.to_pylist()
        for position, token_id in enumerate(
            OPENING + events[person["person_id"]] + END, 1
        )
    ]
    assert rows == expected
    assert any(row["token_id"] == -1 for row in rows)


@pytest.mark.parametrize("cuts", [[100], [3, 4, 200], "all"])
def test_the_order_that_rows_come_in_does_not_show(tmp_path, cuts):
    rng = np.random.default_rng(2)
    steps, persons = histories_of(rng, 40)
    order = np.arange(steps.num_rows)
    stretches = np.split(order, cuts) if cuts != "all" else [rng.permutation(order)]
    moved = steps.take(pa.array(np.concatenate(stretches[::-1])))
    assert write(moved, persons, tmp_path) == write(steps, persons, tmp_path)


def test_the_pieces_that_are_looked_up_at_once_do_not_show(tmp_path, monkeypatch):
    steps, persons = histories_of(np.random.default_rng(3), 40)
    whole = write(steps, persons, tmp_path)
    for size in (1, 7, 40, 399, steps.num_rows - 1, steps.num_rows):
        monkeypatch.setattr(tokens, "STEPS_PER_PIECE", size)
        assert write(steps, persons, tmp_path) == whole


def test_tokens_that_are_taken_over_lie_among_the_others(tmp_path):
    steps, persons = histories_of(np.random.default_rng(5), 60)
    whole = write(steps, persons, tmp_path)
    rows = pq.ParquetFile(tmp_path / "tokens.parquet").read()
    splits = {name: order for order, name in enumerate(SPLITS)}
    is_kept = np.isin(
        np.arange(60), np.random.default_rng(6).choice(60, 25, replace=False)
    )
    kept = persons["person_id"].filter(pa.array(is_kept))
    of_kept = [
        value in set(kept.to_pylist()) for value in rows["person_id"].to_pylist()
    ]
    earlier = pa.table(
        {
            "person_id": rows["person_id"],
            "split_order": pa.array(
                [splits[name] for name in rows["split"].to_pylist()], pa.int8()
            ),
            "token_id": rows["token_id"],
        }
    ).filter(pa.array(of_kept))
    is_new = [
        value not in set(kept.to_pylist()) for value in steps["person_id"].to_pylist()
    ]
    left = steps.filter(pa.array(is_new)), persons.filter(pa.array(~is_kept))
    assert write(*left, tmp_path, earlier) == whole
    assert write(*left, tmp_path) != whole
    nobody = steps.slice(0, 0), persons.slice(0, 0)
    everybody = earlier.slice(0, 0), earlier
    assert write(*nobody, tmp_path, everybody[1]) != whole


def test_days_that_no_walk_spells_are_missing():
    ids = {f"token_id_{place}": [place, 3 + place] for place in (1, 2, 3)}
    spelled = pa.table({"role": ["gap"] * 2, "days": [-5, -2], **ids})
    words = Words.of(WORD_TABLES | {"spelled": spelled})
    days = np.array([-6, -5, -4, -2, -1])
    found = [
        dict(zip(rows.tolist(), token_ids.tolist(), strict=True))
        for rows, token_ids in words.spell("gap", np.arange(5), days)
    ]
    assert found == [
        {0: -1, 1: 1, 2: -1, 3: 4, 4: -1},
        {1: 2, 3: 5},
        {1: 3, 3: 6},
    ]


def test_a_history_of_nobody_is_refused(tmp_path):
    steps, persons = histories_of(np.random.default_rng(7), 5)
    with pytest.raises(RuntimeError, match="are not those of its persons"):
        write(steps, persons.slice(1), tmp_path)


def test_files_are_cut_into_groups_of_one_size(tmp_path):
    count = ROWS_PER_GROUP // 8 + 1
    steps, persons = histories_of(np.random.default_rng(8), count)
    write(steps, persons, tmp_path)
    file = pq.ParquetFile(tmp_path / "tokens.parquet")
    groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert len(groups) > 2
    assert set(groups[:-1]) == {ROWS_PER_GROUP}
    assert 0 < groups[-1] <= ROWS_PER_GROUP


def test_nothing_imports_pandas(tmp_path):
    steps, persons = histories_of(np.random.default_rng(4), 20)
    known = steps["token_order"].to_numpy() != 11
    names = pa.table({"token": NAMES["token"], "kind": NAMES["kind"]})
    splits = pa.table({"split": NAMES["split"]})
    tables = {"persons": persons, "names": names, "splits": splits, **WORD_TABLES}
    for name, table in {"steps": steps.filter(pa.array(known)), **tables}.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
    code = """
import sys
from pathlib import Path
import pyarrow.parquet as pq
from omop_gpt.pack import make_folders, pack_file
from omop_gpt.tokens import Words, write_tokens
folder = Path(sys.argv[1])
tables = {file.stem: pq.ParquetFile(file).read() for file in folder.glob("*.parquet")}
names = {
    name: tables[table][name].combine_chunks()
    for table, name in (("names", "token"), ("names", "kind"), ("splits", "split"))
}
words = Words.of({name: tables[name] for name in ("words", "spelled", "events")})
path = folder / "tokens.parquet"
write_tokens(words, tables["steps"], tables["persons"], None, names, path)
make_folders(folder)
pack_file(path, folder)
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
