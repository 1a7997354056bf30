"""Visits and events in order: as the query has them, and as a sort by hand."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import duckdb
import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import unit_test_rows, warehouse_of
from omop_gpt import ordering
from omop_gpt.columns import Columns
from omop_gpt.ordering import WRITTEN, in_order, ordered
from omop_gpt.plugin import Plugin
from omop_gpt.tokens import Records

PROJECT = Path(__file__).parents[2]
UNIT_TESTS = [
    PROJECT / f"models/intermediate/encode/_encode__{name}__unit_tests.yml"
    for name in ("histories", "coarse_dates")
]
# what the unit tests give, with the types that it has in the warehouse
TABLES = {
    "int_persons_checked": "person_id bigint, part int, reason varchar",
    "int_deaths_checked": "person_id bigint, death_date date, reason varchar",
    "int_persons_anchored": "person_id bigint, anchor_date date",
    "int_event_tokens": "token_order int",
    "int_value_bins": "token_order int, field varchar, bin int, low double, "
    "high double",
    "int_visits_checked": "person_id bigint, part int, visit_occurrence_id bigint, "
    "repetition int, visit_concept_id bigint, visit_start_date date, "
    "visit_end_date date, discharged_to_concept_id bigint, reason varchar",
    "int_events_written": "person_id bigint, part int, visit_occurrence_id bigint, "
    "token_order int, event_date date, hour int, value_as_number double, "
    "operator_concept_id bigint, value_as_concept_id bigint, quantity double, "
    "days_supply int, end_date date, source_id bigint",
}
GRID_DAYS = {"day": 1, "week": 7, "month": 30}


def cases() -> list[dict]:
    return [
        case
        for path in UNIT_TESTS
        for case in yaml.safe_load(path.read_text())["unit_tests"]
        if case["model"] == "int_histories_ordered"
    ]


def histories_of(case: dict) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Return persons, visits and events of a unit test, as dbt asks for them."""
    con = warehouse_of(case["given"], TABLES)
    scheme = case.get("overrides", {}).get("vars", {}).get("att_type", "day")
    macros = (
        jinja2.Environment(extensions=["jinja2.ext.do"])
        .from_string(
            # what a macro returns, Jinja alone cannot hand to another
            "".join(
                (PROJECT / f"macros/{name}.sql").read_text()
                for name in ("arrays", "coarse_date", "days_between", "steps")
            ).replace("macro grid_days()", "macro known_here()"),
            globals={
                "ref": lambda name: name,
                "var": lambda name: {"att_type": scheme}[name],
                "target": SimpleNamespace(type="duckdb"),
                "is_new": lambda person_id: "true",
                "grid_days": lambda: GRID_DAYS[scheme],
                "dbt": SimpleNamespace(
                    dateadd=lambda part, count, date: (
                        f"({date} + ({count}) * interval 1 {part})"
                    )
                ),
            },
        )
        .module
    )
    persons = con.sql(
        "select person_id, death_date from int_persons_checked as persons left join "
        "(from int_deaths_checked where reason is null) as deaths using (person_id) "
        "where persons.reason is null order by person_id"
    ).to_arrow_table()
    if scheme != "day":
        persons = con.sql(
            f"select person_id, cast(anchor_date + floor((death_date - anchor_date) "
            f"/ {GRID_DAYS[scheme]}.0) * {GRID_DAYS[scheme]} * interval 1 day as date) "
            "as death_date from persons left join int_persons_anchored "
            "using (person_id) order by person_id"
        ).to_arrow_table()
    visits, events = (
        con.sql(query).to_arrow_table()
        for query in (macros.visits_to_order(0), macros.events_to_order(0))
    )
    return persons, visits, events


def steps_of(persons: pa.Table, visits: pa.Table, events: pa.Table) -> list[dict]:
    """Return the steps of histories, as the model has them, of what Python reads."""
    unknown = {
        name: pa.nulls(len(persons), pa.int64())
        for name in (
            "start_year", "age_years", "gender_concept_id", "race_concept_id",
            "ethnicity_concept_id",
        )
    }  # fmt: skip
    told = pa.table({**dict(zip(persons.column_names, persons.columns, strict=True)),
                     **unknown})  # fmt: skip
    records = Records(Columns(told), Columns(visits), Columns(events))
    said: dict[int, dict] = {}
    for kind, rows, values in records.said():
        for place, row in enumerate(rows.tolist()):
            said.setdefault(row, {})[kind] = None if values is None else values[place]
    steps = []
    of_visit, of_event = iter(visits.to_pylist()), iter(events.to_pylist())
    for person, opening, closing in zip(
        persons.to_pylist(), records.opening, records.closing, strict=True
    ):
        steps.append({"person_id": person["person_id"], "step": 0})
        row = int(opening) + 1
        while row < closing:
            visit = next(of_visit)
            opens = {
                "closing_days": said[row].get("move", 0) if steps[-1]["step"] else None,
                "closing_discharged_to_concept_id": said[row].get("discharge"),
                "gap_days": said[row]["gap"],
                "opens_visit": True,
            }
            for number in range(max(visit["event_count"], 1)):
                step = {**visit, "step": 1, "opens_visit": False, "is_new_hour": False}
                step["gap_days"] = None
                if number == 0:
                    step |= opens
                if visit["event_count"]:
                    row += 1
                    step |= next(of_event)
                    step["move_days"] = said[row].get("move", 0)
                    step["is_new_hour"] = "hour" in said[row]
                steps.append(step)
            row += 1
        closes = said[int(closing)]
        steps.append(
            {
                "person_id": person["person_id"],
                "step": 2,
                "closing_days": closes.get("move", 0) if steps[-1]["step"] else None,
                "closing_discharged_to_concept_id": closes.get("discharge"),
                "gap_days": closes.get("gap"),
                "visit_start_date": person["death_date"],
            }
        )
    assert not list(of_visit)
    assert not list(of_event)
    return steps


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["name"])
def test_histories_are_ordered_as_the_query_orders_them(case):
    persons, visits, events = histories_of(case)
    steps = steps_of(persons, *ordered(persons, visits, events))
    flags = ("opens_visit", "is_loose", "is_new_hour")
    expected = unit_test_rows(case["expect"])
    found = [
        {
            name: str(step.get(name) or False).lower()
            if name in flags
            else ("" if step.get(name) is None else str(step[name]))
            for name in row
        }
        for step, row in zip(steps, expected, strict=True)
    ]
    # dbt compares rows in no order: where it counts, a column tells it
    assert sorted(found, key=str) == sorted(expected, key=str)


def test_a_step_of_a_unit_test_is_wrong_when_it_is_changed():
    (case,) = (
        case
        for case in cases()
        if case["name"] == "events_move_the_cursor_and_say_the_hour_when_it_changes"
    )
    persons, visits, events = histories_of(case)
    steps = steps_of(persons, *ordered(persons, visits, events.slice(1)))
    assert len(steps) == len(unit_test_rows(case["expect"])) - 1


LARGE = 2**63 - 1


def dirty(rng: np.random.Generator) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Make rows that repeat one another, of ids of all sizes, NULL in many places."""

    def some(values: list, count: int, share: float = 0.3) -> pa.Array:
        picked = rng.integers(0, len(values), count)
        return pa.array(
            [
                None if rng.random() < share else values[number]
                for number in picked.tolist()
            ]
        )

    ids = sorted({-LARGE - 1, LARGE, 0, *rng.integers(-(2**62), 2**62, 6).tolist()})
    people = len(ids)
    starts = rng.integers(-30_000, 30_000, people)
    person = np.repeat(np.arange(people), rng.integers(0, 9, people))
    size = len(person)
    known = [-LARGE - 1, LARGE, -1, 0, 7, 10**12]
    visit_id = some(known, size, 0.2).to_pylist()
    start = starts[person] + rng.integers(-2, 3, size)
    seen: dict[tuple, int] = {}
    repetition = []
    for pair in zip(person.tolist(), visit_id, strict=True):
        seen[pair] = seen.get(pair, 0) + 1
        repetition.append(seen[pair])
    visits = {
        "person_id": pa.array([ids[place] for place in person], pa.int64()),
        "visit_occurrence_id": pa.array(visit_id, pa.int64()),
        "repetition": pa.array(repetition, pa.int32()),
        "visit_concept_id": some([0, 9201, 9202, LARGE], size, 0).cast(pa.int64()),
        "visit_start_date": pa.array(start.astype(np.int32)).view(pa.date32()),
        "visit_end_date": pa.array(
            (start + rng.integers(-1, 4, size)).astype(np.int32)
        ).view(pa.date32()),
        "discharged_to_concept_id": some([0, 8536], size).cast(pa.int64()),
    }
    of_event = rng.integers(0, people, 400)
    of_person = [
        [key for owner, key in seen if owner == place and key is not None]
        for place in range(people)
    ]
    event_visit = [
        None
        if rng.random() < 0.3 or not of_person[place]
        else of_person[place][rng.integers(len(of_person[place]))]
        for place in of_event.tolist()
    ]
    date = (starts[of_event] + rng.integers(-3, 4, 400)).astype(np.int32)
    numbers = [-1e308, -2.5, -0.0, 0.0, 5e-324, 2.5, 1e308]
    events = {
        "person_id": pa.array([ids[place] for place in of_event], pa.int64()),
        "visit_occurrence_id": pa.array(event_visit, pa.int64()),
        "token_order": pa.array(rng.integers(1, 4, 400, np.int32)),
        "event_date": pa.array(date).view(pa.date32()),
        "hour": some([0, 8, 23], 400).cast(pa.int32()),
        "value_as_number": some(numbers, 400, 0.8).cast(pa.float64()),
        "value_bin": some([0, 1], 400, 0.9).cast(pa.int32()),
        "operator_concept_id": some([4172703, -LARGE], 400, 0.9).cast(pa.int64()),
        "value_as_concept_id": some([0, LARGE], 400, 0.9).cast(pa.int64()),
        "quantity": some(numbers, 400, 0.9).cast(pa.float64()),
        "quantity_bin": pa.nulls(400, pa.int32()),
        "days_supply": some([-5, 30], 400, 0.9).cast(pa.int32()),
        "end_date": pa.nulls(400, pa.date32()),
        "source_id": some([-LARGE - 1, LARGE, *range(300)], 400, 0.1).cast(pa.int64()),
    }
    return pa.table({"person_id": pa.array(ids, pa.int64())}), *map(
        pa.table, (visits, events)
    )


def first(value: object) -> tuple:
    """Order NULL before all values."""
    return (value is not None, value if value is not None else 0)


def last(value: object) -> tuple:
    """Order NULL after all values."""
    return (value is None, value if value is not None else 0)


def by_hand(persons, visits, events) -> tuple[list[tuple], list[tuple]]:
    """Order visits and events by Python's own sort, person by person."""
    told_visits, told_events = [], []
    for (person,) in zip(persons["person_id"].to_pylist(), strict=True):
        mine = [row for row in events.to_pylist() if row["person_id"] == person]
        spans = [
            {**row, "is_loose": False}
            for row in visits.to_pylist()
            if row["person_id"] == person
        ] + [
            {
                "is_loose": True, "visit_start_date": day, "visit_end_date": day,
                "visit_concept_id": None, "visit_occurrence_id": None,
                "repetition": None, "discharged_to_concept_id": None,
            }
            for day in {
                row["event_date"] for row in mine if row["visit_occurrence_id"] is None
            }
        ]  # fmt: skip
        spans.sort(
            key=lambda row: (
                row["visit_start_date"], row["is_loose"], row["visit_end_date"],
                last(row["visit_concept_id"]), last(row["visit_occurrence_id"]),
                last(row["repetition"]),
            )
        )  # fmt: skip
        end = None
        for order, span in enumerate(spans, 1):
            inside = [
                row
                for row in mine
                if (
                    row["visit_occurrence_id"] is None
                    and row["event_date"] == span["visit_start_date"]
                    if span["is_loose"]
                    else span["repetition"] == 1
                    and span["visit_occurrence_id"] is not None
                    and row["visit_occurrence_id"] == span["visit_occurrence_id"]
                )
            ]
            inside.sort(
                key=lambda row: (
                    *(first(row[name]) for name in WRITTEN), first(row["source_id"])
                )
            )  # fmt: skip
            groups = [
                list(group)
                for _, group in groupby(
                    inside, key=lambda row: [row[name] for name in WRITTEN]
                )
            ]
            before = end or span["visit_start_date"].replace(month=1, day=1)
            gap = (span["visit_start_date"] - before).days
            end = span["visit_end_date"]
            told_visits.append(
                (
                    person, order, span["is_loose"], span["visit_occurrence_id"],
                    span["visit_concept_id"], span["visit_start_date"], end,
                    span["discharged_to_concept_id"], gap, len(groups),
                )
            )  # fmt: skip
            for number, group in enumerate(groups, 1):
                row = group[0]
                told_events.append(
                    (
                        person, order, number, row["token_order"], row["source_id"],
                        len(group), row["event_date"],
                        (row["event_date"] - span["visit_start_date"]).days,
                        *(
                            row[name]
                            for name in ordering.EVENTS.names[8:]
                            if not name.endswith("_bin")
                        ),
                    )
                )  # fmt: skip
    return told_visits, told_events


@pytest.mark.parametrize("dense", [0, 8])
@pytest.mark.parametrize("seed", range(4))
def test_dirty_rows_are_ordered_as_by_hand(seed, dense, monkeypatch):
    monkeypatch.setattr(ordering, "DENSE", dense)
    persons, visits, events = dirty(np.random.default_rng(seed))
    found = ordered(persons, visits, events)
    # a bin goes with its number, and is no part of the order
    names = [name for name in ordering.EVENTS.names if not name.endswith("_bin")]
    told = (found[0], found[1].select(names))
    expected = by_hand(persons, visits, events)
    assert [[tuple(row.values()) for row in table.to_pylist()] for table in told] == [
        *expected
    ]
    assert any(row[5] > 1 for row in expected[1])
    assert sum(row[5] for row in expected[1]) == events.num_rows


@pytest.mark.parametrize("seed", range(3))
def test_the_order_that_rows_come_in_does_not_show(seed):
    rng = np.random.default_rng(seed)
    persons, visits, events = dirty(rng)
    # rows of one event differ in nothing but their id
    events = events.drop(["value_bin", "quantity_bin"])
    nothing = pa.nulls(len(events), pa.int32())
    for name in ("value_bin", "quantity_bin"):
        events = events.append_column(name, nothing)
    moved = [
        table.take(pa.array(rng.permutation(len(table)))) for table in (visits, events)
    ]
    assert ordered(persons, *moved) == ordered(persons, visits, events)


def test_ids_that_lie_close_are_found_as_others_are(monkeypatch):
    rng = np.random.default_rng(3)
    person = np.repeat(np.arange(50), 20)
    for ids in (np.arange(1000), rng.permutation(1000), np.tile(np.arange(20), 50)):
        asked = rng.integers(0, 1000, 300)
        found = []
        for dense in (0, 8):
            monkeypatch.setattr(ordering, "DENSE", dense)
            found.append(
                ordering.rows_of(person, ids - 7, person[asked], ids[asked] - 7)
            )
        assert found[0].tolist() == found[1].tolist() == asked.tolist()


def test_nobody_has_no_rows():
    persons, visits, events = dirty(np.random.default_rng(0))
    nobody = ordered(persons.slice(0, 0), visits.slice(0, 0), events.slice(0, 0))
    assert [table.num_rows for table in nobody] == [0, 0]
    assert [table.schema for table in nobody] == [ordering.VISITS, ordering.EVENTS]
    alone = ordered(persons, visits.slice(0, 0), events.slice(0, 0))
    assert [table.num_rows for table in alone] == [0, 0]


@pytest.mark.parametrize(
    "keys",
    [
        [[3, 1, 2, 1], [0, 9, 0, 8]],
        [[-LARGE - 1, LARGE, 0, LARGE], [1, 1, 1, 0], [5, 5, 5, 5]],
        [[0, 0, 0, 0, 0], [LARGE, -LARGE, LARGE, 0, -LARGE], [2, 1, 0, 0, 0]],
    ],
)
def test_numbers_of_any_size_are_in_order(keys):
    columns = [np.array(key, dtype=np.int64) for key in keys]
    found = [tuple(key[row] for key in keys) for row in in_order(columns)]
    assert found == sorted(zip(*keys, strict=True))


def test_numbers_with_a_point_are_in_order():
    numbers = [-1e308, -2.5, -5e-324, 0.0, -0.0, 5e-324, 2.5, 1e308, None]
    table = pa.table({"number": pa.array(numbers, pa.float64())})
    _, key = ordering.keys(Columns(table), "number")
    assert key[3] == key[4]  # they are equal, and what comes next decides
    last_is_null = in_order(ordering.keys(Columns(table), "number")).tolist()
    assert last_is_null[:3] + last_is_null[5:] == [0, 1, 2, 5, 6, 7, 8]
    assert in_order(ordering.keys(Columns(table), "number", nulls_first=True))[0] == 8


def test_files_of_an_earlier_run_do_not_stay(tmp_path):
    tables = dict(
        zip(
            ("persons", "visits", "events"),
            dirty(np.random.default_rng(1)),
            strict=True,
        )
    )
    plugin = Plugin.__new__(Plugin)
    plugin.connection = duckdb.connect()
    plugin.creds = SimpleNamespace(settings={"threads": 2, "memory_limit": "4GB"})
    for name, table in tables.items():
        plugin.connection.register("rows", table)
        plugin.connection.execute(f"create table {name} as from rows")
    queries = {
        name: f"from {name}{' order by person_id' * (name == 'persons')}"
        for name in tables
    }
    rows, timeline = tmp_path / "timeline.rows", tmp_path / "timeline"
    columns = {
        "visits": ["person_id", "visit_order"],
        "events": ["person_id", "source_table", "source_id"],
    }
    asked = {
        "timeline": {str(timeline / name): names for name, names in columns.items()},
        "meanings": "select unnest(['a', 'b', 'c']) as source_table",
    }
    parts = [f"part-0{part}" for part in range(3)]
    plugin.order(rows, dict.fromkeys(parts, queries), **asked)
    plugin.order(rows, {parts[0]: queries}, **asked)
    expected = dict(zip(("visits", "events"), ordered(**tables), strict=True))
    for name in columns:
        for folder in (rows, timeline):
            (file,) = (folder / name).iterdir()
            assert file.name == "part-00.parquet"
            found = pq.ParquetFile(file).read()
            assert found["person_id"] == expected[name]["person_id"]
        assert found.column_names == columns[name]
    meant = [
        "abc"[order - 1] for order in expected["events"]["token_order"].to_pylist()
    ]
    assert found["source_table"].to_pylist() == meant
