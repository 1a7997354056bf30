"""The synthetic CDM as a whole: its eras, its quality checks, its analyses, garbage."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from datetime import timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omop_gpt.decode import DecodeConfig, decode
from omop_gpt.grammar import Grammar
from omop_gpt.step import InputError

pytestmark = [pytest.mark.spark, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
MONTH = timedelta(days=30)


def joined(spans: list[tuple], gap: timedelta) -> list[list[tuple]]:
    """Group spans by asking each pair whether they touch: no order, no window."""
    group = list(range(len(spans)))
    for (i, (s, e)), (j, (t, f)) in itertools.combinations(enumerate(spans), 2):
        if s <= f + gap and t <= e + gap:
            group = [group[i] if g == group[j] else g for g in group]
    found = defaultdict(list)
    for number, span in zip(group, spans, strict=True):
        found[number].append(span)
    return list(found.values())


def spans_of(rows: list[tuple]) -> dict[tuple, list[tuple]]:
    """Spans by person and concept; what ends before it starts ends on its start."""
    found = defaultdict(list)
    for person, concept, start, end in rows:
        found[person, concept].append((start, max(start, end)))
    return found


def test_condition_eras_are_those_of_brute_force(warehouse):
    rows = warehouse.execute(
        "select person_id, condition_concept_id, condition_start_date, "
        "coalesce(condition_end_date, condition_start_date + 1) "
        "from synthetic.condition_occurrence where condition_concept_id <> 0"
    ).fetchall()
    wanted = {
        (*key, min(s for s, _ in era), max(e for _, e in era), len(era))
        for key, spans in spans_of(rows).items()
        for era in joined(spans, MONTH)
    }
    found = warehouse.execute(
        "select * exclude (condition_era_id) from synthetic.condition_era"
    ).fetchall()
    assert len(found) == len(wanted) > 100
    assert set(found) == wanted


def test_drug_eras_are_those_of_brute_force(warehouse):
    rows = warehouse.execute(
        """
        select distinct
            drug_exposure_id, person_id,
            coalesce(ingredient.concept_id, drug_concept_id),
            drug_exposure_start_date, drug_exposure_end_date
        from synthetic.drug_exposure
        left join synthetic.concept_ancestor as above
            on drug_concept_id = above.descendant_concept_id
            and above.ancestor_concept_id in (
                select concept_id from synthetic.concept
                where concept_class_id = 'Ingredient'
            )
        left join synthetic.concept as ingredient
            on above.ancestor_concept_id = ingredient.concept_id
        where drug_concept_id <> 0 and coalesce(days_supply, 0) >= 0
        """
    ).fetchall()
    wanted = set()
    for key, spans in spans_of([row[1:] for row in rows]).items():
        for era in joined(spans, MONTH):
            start, end = min(s for s, _ in era), max(e for _, e in era)
            # day by day: a night between two days is exposed if a span holds both
            nights = {
                s + timedelta(days=n) for s, e in era for n in range((e - s).days)
            }
            gaps = (end - start).days - len(nights)
            wanted.add((*key, start, end, len(era), gaps))
    found = warehouse.execute(
        "select * exclude (drug_era_id) from synthetic.drug_era"
    ).fetchall()
    assert len(found) == len(wanted) > 100
    assert set(found) == wanted


def test_what_is_derived_is_counted(warehouse):
    counted = dict(
        warehouse.execute(
            "select cdm_table, sum(row_count) from synthetic_ledger.derived_ledger "
            "group by 1"
        ).fetchall()
    )
    for table, rows in counted.items():
        (found,) = warehouse.execute(
            f"select count(*) from synthetic.{table}"
        ).fetchone()
        assert found == rows, table
    assert counted.keys() == {"concept", "condition_era", "drug_era", "dose_era"}


def test_every_row_leads_back_to_its_token(loop, warehouse):
    sequences = pq.read_table(loop / "generated_sequences").to_pylist()
    tokens = {row["person_id"]: row["token_ids"] for row in sequences}
    vocabulary = pq.read_table(loop / "vocabulary" / "vocabulary.parquet").to_pylist()
    meaning = {row["token_id"]: row for row in vocabulary}
    rows = warehouse.execute(
        """
        select p.person_id, p.position, condition_concept_id
        from synthetic.condition_occurrence as c
        inner join synthetic_ledger.provenance as p
            on p.cdm_table = 'condition_occurrence'
            and p.row_id = c.condition_occurrence_id
            and p.person_id = c.person_id
        """
    ).fetchall()
    (count,) = warehouse.execute(
        "select count(*) from synthetic.condition_occurrence"
    ).fetchone()
    assert len(rows) == count
    for person, position, concept in rows:
        token = meaning[tokens[person][position - 1]]
        assert (token["source_table"], token["concept_id"]) == (
            "condition_occurrence", concept,
        )  # fmt: skip


def test_synthetic_persons_are_marked_and_have_ids_of_their_own(warehouse):
    near, first, last, marked = warehouse.execute(
        "select (select count(*) from timeline.persons where person_id between 1e9 and "
        "2e9), min(person_id), max(person_id), count(*) = "
        "count(*) filter (person_source_value = 'omop-gpt:' || person_id) "
        "from synthetic.person"
    ).fetchone()
    assert (near, first, last) == (0, 10**9 + 1, 10**9 + 100)
    assert marked
    (description,) = warehouse.execute(
        "select source_description from synthetic.cdm_source"
    ).fetchone()
    assert description.startswith("Synthetic data, sampled from model ")


def test_analyses_run_unchanged_on_both_sides(loop):
    files = sorted((ROOT / "docs" / "analyses").glob("*.sql"))
    assert len(files) == 5
    with duckdb.connect(str(loop / "warehouse.duckdb"), read_only=True) as con:
        for file in files:
            for schema in ("source_cdm", "synthetic"):
                con.execute(f"use {schema}")
                assert con.execute(file.read_text()).fetchall(), (file.name, schema)


# --- quality -----------------------------------------------------------------------

# What breaks each rule in one row that keeps it; mutation() fills in the names.
ROW = "where rowid = (select {} from {{table}})"
ANY = ROW.format("min(rowid)")
FIRST = ROW.format("coalesce(arg_min(rowid, {field}), min(rowid))")
LAST = ROW.format("coalesce(arg_max(rowid, {field}), min(rowid))")
PERSON = "where person_id = (select min(person_id) from {table})"
INSIDE = (
    "where rowid = (select min(t.rowid) from {table} as t inner join visit_occurrence"
    " using (visit_occurrence_id) where {field} between visit_start_date and"
    " visit_end_date)"
)
DEAD = (
    "where rowid = (select coalesce(arg_min(rowid, {field}), min(rowid)) from {table}"
    " where person_id in (select person_id from death))"
)
OTHER_SEX = (
    "where rowid = (select min(t.rowid) from {table} as t inner join person"
    " using (person_id) where gender_concept_id <> {gender})"
)
EARLY, NOW, LATE = "date '1700-01-01'", "date '2000-01-01'", "date '2300-01-01'"
SET = "update {table} set {field} = "
MUTATIONS = {
    "isRequired": f"{SET} null {FIRST}",
    "measureValueCompleteness": f"{SET} null {FIRST}",
    "isPrimaryKey": "insert into {table} from {table} limit 1",
    "isForeignKey": f"{SET} {{missing}} {FIRST}",
    "fkDomain": f"{SET} -7 {ANY}",
    "fkClass": f"{SET} -7 {ANY}",
    "isStandardValidConcept": f"{SET} -7 {ANY}",
    "standardConceptRecordCompleteness": f"{SET} 0 {{number}} {LAST}",
    "sourceConceptRecordCompleteness": f"{SET} 0 {ANY}",
    "sourceValueCompleteness": f"{SET} 'x', {{parameter}} = 0 {ANY}",
    "plausibleValueLow": f"{SET} {{low}} {LAST}",
    "plausibleValueHigh": f"{SET} {{high}} {FIRST}",
    "plausibleTemporalAfter": f"{SET} {EARLY} {{other_now}} {LAST}",
    "plausibleAfterBirth": f"{SET} {EARLY} {LAST}",
    "plausibleDuringLife": f"{SET} {LATE} {DEAD}",
    "plausibleBeforeDeath": f"{SET} {LATE} {DEAD}",
    "plausibleStartBeforeEnd": f"{SET} {LATE}, {{other}} = {NOW} {FIRST}",
    "withinVisitDates": f"{SET} {LATE} {INSIDE}",
    "measurePersonCompleteness": f"delete from {{table}} {PERSON}",
    "measureConditionEraCompleteness": f"delete from {{table}} {PERSON}",
    "measureObservationPeriodOverlap": f"insert into {{table}} from {{table}} {PERSON}",
    "plausibleUnitConceptIds": (
        f"{SET} {{concept}}, unit_concept_id = -7, value_as_number = 1 {ANY}"
    ),
    "plausibleGender": f"{SET} {{concept}} {OTHER_SEX}",
}
DATES = {"'19500101'", "'18500101'", "'20000101'"}


@pytest.fixture(scope="module")
def mutable(loop, tmp_path_factory):
    """A copy of the warehouse, its rows in tables; the query that counts violations."""
    folder = tmp_path_factory.mktemp("quality")
    shutil.copy(loop / "warehouse.duckdb", folder / "warehouse.duckdb")
    environment = os.environ | {
        "OMOP_GPT_WAREHOUSE": str(folder / "warehouse.duckdb"),
        "OMOP_GPT_SCRATCH": ":memory:",
    }
    subprocess.run(
        [
            sys.executable, "-m", "dbt.cli.main", "compile", "--select",
            "synthetic_quality", "--project-dir", ROOT, "--profiles-dir", ROOT,
            "--target-path", folder / "target", "--log-path", folder / "logs",
        ],
        check=True, env=environment, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    (file,) = (folder / "target" / "compiled").rglob("synthetic_quality.sql")
    with duckdb.connect(str(folder / "warehouse.duckdb")) as con:
        con.execute("use synthetic")
        views = con.execute(
            "select view_name from duckdb_views() where schema_name = 'synthetic'"
        ).fetchall()
        for (name,) in views:
            con.execute(f"create table rows_of as from {name}")
            con.execute(f"drop view {name}")
            con.execute(f"alter table rows_of rename to {name}")
        # a concept that no column may name
        con.execute("insert into domain values ('No', 'No', 0)")
        con.execute("insert into concept_class values ('No', 'No', 0)")
        con.execute(
            "insert into concept select * replace (-7 as concept_id, 'No' as domain_id,"
            " 'No' as concept_class_id, null as standard_concept) from concept limit 1"
        )
        yield con, file.read_text(), environment


def violations(con, query: str) -> dict[tuple, tuple[int, int]]:
    """Rows that violate each check, and rows that it is about."""
    found = con.execute(query).fetchall()
    counted = {row[:4]: row[4:] for row in found}
    assert len(counted) == len(found)
    return counted


def mutation(con, check: dict) -> str:
    """Return the statement that breaks a rule in one row."""
    parameter = check["parameter"] or ""
    is_date = parameter in DATES or parameter.startswith("DATEADD")
    table = check["cdm_table"]
    columns = [c[0] for c in con.execute(f"describe {table}").fetchall()]
    is_text = check["other_table"] in ("domain", "vocabulary", "concept_class")
    other = check["other_field"] or ""
    return MUTATIONS[check["check_name"]].format(
        table=table,
        field=check["cdm_field"],
        parameter=parameter,
        other=other,
        concept=check["concept_id"],
        missing="'missing'" if is_text else -99,
        number=", value_as_number = 1" if "value_as_number" in columns else "",
        low=EARLY if is_date else -1e6,
        high=LATE if is_date else 1e6,
        other_now=f", {other} = {NOW}" if check["other_table"] == table else "",
        gender=check.get("gender_concept_id"),
    )


def test_each_rule_is_broken_by_one_row(mutable):
    """Two checks of each kind, of two tables."""
    con, query, _ = mutable
    columns = (
        "check_name, cdm_table, coalesce(cdm_field, '') as cdm_field, parameter, "
        "other_table, other_field, concept_id"
    )
    checks = con.execute(
        f"select {columns} from grammar.quality_checks where check_name not in "
        "('cdmField', 'cdmDatatype')"
    ).fetchall()
    names = [c[0] for c in con.description]
    checks = [dict(zip(names, row, strict=True)) for row in checks]
    genders = con.execute(
        "select 'plausibleGender' as check_name, cdm_table, cdm_field, null as "
        "parameter, null as other_table, null as other_field, concept_id, "
        "gender_concept_id from grammar.plausible_genders where with_descendants = 0"
    ).fetchall()
    names = [c[0] for c in con.description]
    checks += [dict(zip(names, row, strict=True)) for row in genders]
    rows = dict(
        con.execute(
            "select table_name, estimated_size from duckdb_tables() "
            "where schema_name = 'synthetic'"
        ).fetchall()
    )
    chosen = defaultdict(dict)
    for check in checks:
        tables = chosen[check["check_name"]]
        if rows[check["cdm_table"]] and len(tables) < 2:
            tables.setdefault(check["cdm_table"], check)
    assert {name for name, tables in chosen.items() if tables} == MUTATIONS.keys()
    before = violations(con, query)
    for name, tables in chosen.items():
        for check in tables.values():
            key = (name, *(check[c] for c in ("cdm_table", "cdm_field", "concept_id")))
            statement = mutation(con, check)
            con.execute("begin")
            con.execute(statement)
            after, denominator = violations(con, query)[key]
            con.execute("rollback")
            assert denominator >= after > before[key][0], (check, statement)


def test_a_fatal_failure_stops_dbt(mutable):
    con, _, environment = mutable
    folder = Path(environment["OMOP_GPT_WAREHOUSE"]).parent
    broken = folder / "broken.duckdb"
    con.execute("checkpoint")
    shutil.copy(folder / "warehouse.duckdb", broken)
    with duckdb.connect(str(broken)) as other:
        other.execute("update synthetic.measurement set visit_occurrence_id = -5")
        other.execute("alter table synthetic.death drop column cause_source_value")
        other.execute(
            "alter table synthetic.death alter death_type_concept_id type text"
        )
    done = subprocess.run(
        [
            sys.executable, "-m", "dbt.cli.main", "build", "--select",
            "models/marts/quality", "--vars", json.dumps({"omop_schema": "synthetic"}),
            "--project-dir", ROOT, "--profiles-dir", ROOT, "--exclude-resource-type",
            "unit_test", "--target-path", folder / "target", "--log-path",
            folder / "logs",
        ],
        env=environment | {"OMOP_GPT_WAREHOUSE": str(broken)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout[-2000:]
    assert "Failure in test assert_quality_has_no_fatal_failure" in done.stdout
    with duckdb.connect(str(broken), read_only=True) as other:
        failed = other.execute(
            "select check_name, cdm_table, cdm_field from "
            "synthetic_quality.quality_report where severity = 'fatal' and "
            "verdict = 'failed' order by all"
        ).fetchall()
    assert failed == [
        ("cdmDatatype", "death", "death_type_concept_id"),
        ("cdmField", "death", "cause_source_value"),
        ("isForeignKey", "measurement", "visit_occurrence_id"),
    ]


# --- garbage -----------------------------------------------------------------------


def test_garbage_is_counted_and_makes_no_row(loop, tmp_path):
    import numpy as np

    rng = np.random.default_rng(5)
    good = pq.read_table(loop / "generated_sequences").slice(0, 20)
    lists = good["token_ids"].to_pylist()
    size = pq.read_metadata(loop / "vocabulary" / "vocabulary.parquet").num_rows
    garbage = [rng.integers(0, size, 40).tolist() for _ in range(20)]  # random
    garbage += [ids[: rng.integers(1, len(ids))] for ids in lists]  # cut short
    garbage += [rng.permutation(ids).tolist() for ids in lists if len(ids) > 20]
    unknown = [[*ids[:-1], size + 5, ids[-1]] for ids in lists[:5]]
    unknown += [[*ids[:-1], -1, ids[-1]] for ids in lists[:5]]
    grammar = Grammar.load(loop / "vocabulary")
    ageless = [ids.copy() for ids in lists[:4]]
    for ids in ageless:
        ids[2] = grammar.only("age_unknown")
    bad = garbage + unknown + ageless + [[]] * 3 + [None] * 2
    persons = good["person_id"].to_pylist()
    persons += [5_000_000_000 + n for n in range(len(bad))]
    lists += bad
    lists += [lists[0], lists[1]]  # a person again, and nobody
    persons += [persons[0], None]
    folder = tmp_path / "generated_sequences"
    folder.mkdir()
    table = pa.table(
        {
            "person_id": pa.array(persons, pa.int64()),
            "token_ids": pa.array(lists, pa.list_(pa.int32())),
        }
    )
    pq.write_table(table, folder / "part-0.parquet")
    shutil.copytree(loop / "vocabulary", tmp_path / "vocabulary")
    decode(
        DecodeConfig(
            patient_sequence_folder=str(folder), omop_folder=str(tmp_path / "omop")
        )
    )
    with duckdb.connect(str(tmp_path / "warehouse.duckdb"), read_only=True) as con:
        found = con.execute("select person_id from synthetic.person").fetchall()
        assert sorted(p for (p,) in found) == sorted(persons[:20])
        left_out = dict(
            con.execute(
                "select target, row_count from synthetic_ledger.decode_ledger "
                "where outcome = 'left_out'"
            ).fetchall()
        )
    assert left_out == {
        "not_in_grammar": len(garbage),
        "unknown_token": len(unknown),
        "no_year_of_birth": len(ageless),
        "empty": 5,
        "repeated_person": 1,
        "no_person_id": 1,
    }


def test_a_source_that_is_none_is_one_line(loop, tmp_path):
    with pytest.raises(InputError, match="no person table"):
        decode(
            DecodeConfig(
                patient_sequence_folder=str(loop / "generated_sequences"),
                omop_folder=str(tmp_path / "omop"),
                source_omop_folder=str(tmp_path),
            )
        )
    for release in ("1/2/2020", "2020-02-30"):
        with pytest.raises(InputError, match=f"--cdm_release_date {release}"):
            decode(
                DecodeConfig(
                    patient_sequence_folder=str(loop / "generated_sequences"),
                    omop_folder=str(tmp_path / "omop"),
                    cdm_release_date=release,
                )
            )
    with pytest.raises(InputError, match="--memory plenty: give a size"):
        decode(
            DecodeConfig(
                patient_sequence_folder=str(loop / "generated_sequences"),
                omop_folder=str(tmp_path / "omop"),
                memory="plenty",
            )
        )
    assert not (tmp_path / "omop").exists()
