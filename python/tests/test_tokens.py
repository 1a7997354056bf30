"""The files of tokens: placed as by the queries, in order, numbered and named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import unit_test_rows, warehouse_of
from omop_gpt import tokens
from omop_gpt.ordering import EVENTS, VISITS
from omop_gpt.tokens import ROWS_PER_GROUP, Words, in_rows, placed, write_tokens

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


class Queries:
    """The queries of the macros that write tokens, of tables of their own."""

    def __init__(self, given: list[dict]) -> None:
        self.con = warehouse_of(given, TABLES)
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


def said_by(steps: list[dict], persons: list[dict]) -> list[tuple]:
    """Say what int_tokens_placed reads of steps and persons, place by place."""

    def where(is_there, value=None) -> tuple[np.ndarray, np.ndarray | None]:
        rows = [row for row, step in enumerate(steps) if is_there(step)]
        values = None if value is None else [value(steps[row]) for row in rows]
        return np.array(rows, dtype=int), None if value is None else np.array(values)

    def column(name):
        return where(lambda step: step[name] is not None, lambda step: step[name])

    def days(name, is_there):
        return where(
            lambda step: is_there(step) and step[name] is not None,
            lambda step: step[name],
        )

    def opens(step):
        return step["step"] == 0

    def dies(step):
        return step["step"] == 2 and step["visit_start_date"] is not None

    of_person = {person["person_id"]: person for person in persons}

    def of_persons(name):
        return where(
            lambda step: opens(step) and of_person[step["person_id"]][name] is not None,
            lambda step: of_person[step["person_id"]][name],
        )

    def unbinned(number, bins):
        return where(lambda step: step[number] is not None and step[bins] is None)

    return [
        ("move", *days("closing_days", lambda step: step["closing_days"] != 0)),
        ("discharge", *column("closing_discharged_to_concept_id")),
        ("gap", *days("gap_days", lambda step: step["opens_visit"] or dies(step))),
        ("bos", *where(opens)),
        *(
            item
            for kind, name in (("year", "start_year"), ("age", "age_years"))
            for item in (
                (
                    f"{kind}_unknown",
                    *where(
                        lambda step, name=name: opens(step)
                        and of_person[step["person_id"]][name] is None
                    ),
                ),
                (kind, *of_persons(name)),
            )
        ),
        *((kind, *of_persons(f"{kind}_concept_id"))
          for kind in ("gender", "race", "ethnicity")),
        ("death", *where(dies)),
        ("no_visit", *where(lambda step: step["opens_visit"] and step["is_loose"])),
        ("visit", *where(lambda step: step["opens_visit"] and not step["is_loose"],
                         lambda step: step["visit_concept_id"])),
        ("eos", *where(lambda step: step["step"] == 2)),
        ("move", *days("move_days", lambda step: step["move_days"] != 0)),
        ("hour", *where(lambda step: step["is_new_hour"], lambda step: step["hour"])),
        ("event", *column("token_order")),
        ("number_unknown", *unbinned("value_as_number", "value_bin")),
        ("number", *column("value_bin")),
        ("operator", *column("operator_concept_id")),
        ("value_concept", *column("value_as_concept_id")),
        ("quantity_unknown", *unbinned("quantity", "quantity_bin")),
        ("quantity", *column("quantity_bin")),
        ("days_supply", *column("days_supply")),
        ("end", *where(lambda step: step["end_date"] is not None,
                       lambda step: (step["end_date"] - step["event_date"]).days)),
    ]  # fmt: skip


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["name"])
def test_tokens_are_placed_as_the_query_places_them(case):
    queries = Queries(case["given"])
    steps = queries.table(
        "select * from int_histories_ordered order by part, step_order"
    ).to_pylist()
    persons = queries.table("select * from int_persons_started").to_pylist()
    counts, token_ids = in_rows(
        placed(queries.words(), said_by(steps, persons)), len(steps)
    )
    found = [
        (step["part"], step["person_id"], step["step_order"], of_step.tolist())
        for step, of_step in zip(
            steps, np.split(token_ids, np.cumsum(counts)[:-1]), strict=True
        )
    ]
    assert found == sorted(
        (
            int(row.get("part", 0)),
            int(row.get("person_id", 1)),
            int(row["step_order"]),
            # there may be more places than a unit test looks at, but not fewer tokens
            [int(row[name]) for name in row if name.startswith("token_") and row[name]],
        )
        for row in unit_test_rows(case["expect"])
    )


# a language of a few words: demographics that all share, loose days, ten events
WORD_TABLES = {
    "words": pa.table(
        {
            "token_id": [0, 1, 2, 3, 4, 5, 6, 7],
            "kind": [
                "bos", "eos", "gender", "race", "ethnicity", "year_unknown",
                "age_unknown", "no_visit",
            ],
            "said": [None, None, 0, 0, 0, None, None, None],
        }
    ),
    "spelled": pa.table(
        {"role": ["gap"], "days": [0], "token_id_1": [18]}
        | {f"token_id_{place}": pa.nulls(1, pa.int32()) for place in (2, 3)}
    ),
    "events": pa.table({"token_order": range(1, 11), "token_id": range(8, 18)}),
}  # fmt: skip
WORDS = Words.of(WORD_TABLES)
OPENING, LOOSE_DAY, END = [0, 5, 6, 2, 3, 4], [18, 7], [1]
NAMES = {
    "split": pa.array(SPLITS),
    "token": pa.array([f"word {n}" for n in range(19)]),
    "kind": pa.array(
        ["bos", "eos"] + ["person"] * 5 + ["no_visit"] + ["event"] * 10 + ["gap"]
    ),
}


def histories_of(rng: np.random.Generator, people: int) -> tuple[pa.Table, ...]:
    """Make persons with any 64-bit id, their loose days, and events on these."""
    ids = np.sort(
        rng.choice(2**62, people, replace=False) * rng.choice([-2, 1], people)
    )
    ids[[0, -1]] = -(2**63), 2**63 - 1
    days = rng.integers(0, 6, people)
    days[0] = 3
    person = np.repeat(np.arange(people), days)
    event_count = rng.integers(1, 8, len(person))
    visit = np.repeat(np.arange(len(person)), event_count)
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
            "death_date": pa.nulls(people, pa.date32()),
        }
    )
    date = pa.array(np.zeros(len(person), dtype=np.int32)).view(pa.date32())
    visits = {
        "person_id": ids[person],
        "visit_order": np.arange(len(person)) - (np.cumsum(days) - days)[person] + 1,
        "is_loose": np.ones(len(person), dtype=bool),
        "visit_start_date": date,
        "visit_end_date": date,
        "gap_days": np.zeros(len(person), dtype=np.int32),
        "event_count": event_count.astype(np.int32),
    }
    events = {
        "person_id": ids[person[visit]],
        "event_date": date.take(pa.array(visit)),
        # 11 is no event of the language
        "token_order": rng.integers(1, 12, len(visit), np.int32),
    }
    return persons, filled_up(VISITS, visits), filled_up(EVENTS, events)


def filled_up(schema: pa.Schema, columns: dict) -> pa.Table:
    """Make a table of columns; the others are NULL."""
    size = len(columns["person_id"])
    return pa.table(
        {
            field.name: columns.get(field.name, pa.nulls(size, field.type))
            for field in schema
        }
    ).cast(schema)


def rows_of_persons(table: pa.Table, persons: pa.Table) -> pa.Table:
    """Return the rows of some persons."""
    return table.filter(pc.is_in(table["person_id"], persons["person_id"]))


def test_tokens_of_training_are_counted(tmp_path, monkeypatch):
    histories = histories_of(np.random.default_rng(5), 50)
    path = tmp_path / "tokens.parquet"
    count, persons_count = write_tokens(WORDS, *histories, None, NAMES, path)
    rows = pq.read_table(path).to_pylist()
    is_counted = [row["split"] == "train" and row["token_id"] >= 0 for row in rows]
    told = [row for row, counts in zip(rows, is_counted, strict=True) if counts]
    assert 0 < len(told) < len(rows)
    pairs = {(row["person_id"], row["token_id"]) for row in told}
    for token_id in range(len(NAMES["token"])):
        assert count[token_id] == sum(row["token_id"] == token_id for row in told)
        assert persons_count[token_id] == sum(found == token_id for _, found in pairs)
    monkeypatch.setattr(tokens, "ROWS_PER_PIECE", 7)
    again = write_tokens(WORDS, *histories, None, NAMES, path)
    assert again.tolist() == [count.tolist(), persons_count.tolist()]


def write(histories: tuple[pa.Table, ...], folder: Path, earlier=None) -> bytes:
    """Return the bytes of the file of these histories."""
    path = folder / "tokens.parquet"
    write_tokens(WORDS, *histories, earlier, NAMES, path)
    return path.read_bytes()


def test_tokens_are_numbered_in_each_person_and_named(tmp_path):
    persons, visits, events = histories_of(np.random.default_rng(1), 50)
    write((persons, visits, events), tmp_path)
    rows = pq.read_table(tmp_path / "tokens.parquet").to_pylist()
    said: dict[int, list[int]] = {row["person_id"]: [] for row in persons.to_pylist()}
    of_event = iter(events.to_pylist())
    for visit in visits.to_pylist():
        said[visit["person_id"]] += LOOSE_DAY
        for _ in range(visit["event_count"]):
            order = next(of_event)["token_order"]
            said[visit["person_id"]].append(7 + order if order < 11 else -1)
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
            OPENING + said[person["person_id"]] + END, 1
        )
    ]
    assert rows == expected
    assert any(row["token_id"] == -1 for row in rows)


def test_the_pieces_that_are_looked_up_at_once_do_not_show(tmp_path, monkeypatch):
    histories = histories_of(np.random.default_rng(3), 40)
    whole = write(histories, tmp_path)
    rows = sum(table.num_rows for table in (*histories, histories[0]))
    for size in (1, 7, 40, 399, rows - 1, rows):
        monkeypatch.setattr(tokens, "ROWS_PER_PIECE", size)
        assert write(histories, tmp_path) == whole


def test_tokens_that_are_taken_over_lie_among_the_others(tmp_path):
    histories = histories_of(np.random.default_rng(5), 60)
    persons = histories[0]
    whole = write(histories, tmp_path)
    rows = pq.ParquetFile(tmp_path / "tokens.parquet").read()
    is_kept = np.isin(
        np.arange(60), np.random.default_rng(6).choice(60, 25, replace=False)
    )
    kept = persons.filter(pa.array(is_kept))
    split = pc.index_in(rows["split"].cast(pa.string()), pa.array(SPLITS))
    earlier = rows_of_persons(
        rows.append_column("split_order", split.cast(pa.int8())), kept
    )
    new = persons.filter(pa.array(~is_kept))
    left = tuple(rows_of_persons(table, new) for table in histories)
    assert write(left, tmp_path, earlier) == whole
    assert write(left, tmp_path) != whole
    nobody = tuple(table.slice(0, 0) for table in histories)
    assert write(nobody, tmp_path, earlier) != whole
    assert pq.read_table(tmp_path / "tokens.parquet").equals(
        rows_of_persons(rows, kept)
    )


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


def test_who_has_no_visit_has_a_history(tmp_path):
    persons, visits, events = histories_of(np.random.default_rng(2), 20)
    write((persons, visits.slice(0, 0), events.slice(0, 0)), tmp_path)
    found = pq.read_table(tmp_path / "tokens.parquet")
    assert found["token_id"].to_pylist() == (OPENING + END) * 20
    assert found["person_id"].unique() == persons["person_id"].combine_chunks()


@pytest.mark.parametrize(
    "fault", ["no person", "no visit", "no event", "another order"]
)
def test_what_is_of_nobody_is_refused(tmp_path, fault):
    persons, visits, events = histories_of(np.random.default_rng(7), 5)
    histories = {
        "no person": (persons.slice(1), visits, events),
        "no visit": (persons, visits.slice(1), events),
        "no event": (persons, visits, events.slice(1)),
        "another order": (
            persons, visits.take(pa.array(range(len(visits))[::-1])), events
        ),
    }[fault]  # fmt: skip
    with pytest.raises(RuntimeError, match="are not those of its persons"):
        write(histories, tmp_path)


def test_files_are_cut_into_groups_of_one_size(tmp_path):
    count = ROWS_PER_GROUP // 8 + 1
    write(histories_of(np.random.default_rng(8), count), tmp_path)
    file = pq.ParquetFile(tmp_path / "tokens.parquet")
    groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert len(groups) > 2
    assert set(groups[:-1]) == {ROWS_PER_GROUP}
    assert 0 < groups[-1] <= ROWS_PER_GROUP


def test_nothing_imports_pandas(tmp_path):
    persons, visits, events = histories_of(np.random.default_rng(4), 20)
    known = pc.min_element_wise(events["token_order"], 10)
    place = events.column_names.index("token_order")
    events = events.set_column(place, "token_order", known)
    names = pa.table({"token": NAMES["token"], "kind": NAMES["kind"]})
    splits = pa.table({"split": NAMES["split"]})
    tables = {"persons": persons, "visits": visits, "events": events, "names": names}
    words = {"of_words": WORD_TABLES["events"], **WORD_TABLES}
    for name, table in {"splits": splits, **words, **tables}.items():
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
words = {name: tables[name] for name in ("words", "spelled")}
words = Words.of({"events": tables["of_words"], **words})
path = folder / "tokens.parquet"
histories = (tables[name] for name in ("persons", "visits", "events"))
write_tokens(words, *histories, None, names, path)
make_folders(folder)
pack_file(path, folder)
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
