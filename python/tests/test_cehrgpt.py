"""The export for CEHR-GPT: files that its loader takes, from the timeline alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

# as cehrbert_data 0.2.3 writes them, in its order; the split is ours
SCHEMA = {
    "cohort_member_id": pa.int64(),
    "person_id": pa.int64(),
    "concept_ids": pa.list_(pa.string()),
    "visit_segments": pa.list_(pa.int32()),
    "orders": pa.list_(pa.int32()),
    "dates": pa.list_(pa.int32()),
    "ages": pa.list_(pa.int64()),
    "visit_concept_orders": pa.list_(pa.int32()),
    "num_of_visits": pa.int32(),
    "num_of_concepts": pa.int64(),
    "concept_value_masks": pa.list_(pa.int32()),
    "number_as_values": pa.list_(pa.float32()),
    "concept_as_values": pa.list_(pa.string()),
    "is_numeric_types": pa.list_(pa.int32()),
    "mlm_skip_values": pa.list_(pa.int32()),
    "priorities": pa.list_(pa.float64()),
    "visit_concept_ids": pa.list_(pa.int64()),
    "visit_rank_orders": pa.list_(pa.int32()),
    "concept_orders": pa.list_(pa.int32()),
    "record_ranks": pa.list_(pa.int32()),
    "units": pa.list_(pa.string()),
    "epoch_times": pa.list_(pa.int64()),
    "split": pa.string(),
}
# two persons with a stay, an outpatient visit, a loose day; one without anything
TIMELINE = """
create schema omop;
create table omop.person as
    select
        range as person_id, 0 as gender_concept_id, 1950 as year_of_birth,
        6 as month_of_birth, 15 as day_of_birth, 0 as race_concept_id,
        0 as ethnicity_concept_id
    from range(-1, 2);
create schema encode_steps;
create table encode_steps.int_persons_started as
    select
        person_id, gender_concept_id, race_concept_id, year_of_birth,
        date '2001-01-01' as death_date, 'train' as split,
        cast(person_id + 5 as int) as part
    from omop.person;
create schema timeline;
create table timeline.visits as
    select
        cast(person_id as bigint) as person_id, visit_order,
        cast(visit_concept_id as bigint) as visit_concept_id,
        visit_start_date, visit_end_date, cast(null as bigint)
            as discharged_to_concept_id
    from (
        values
            (1, 9201, date '2000-01-10', date '2000-01-20'),
            (2, 9202, date '2000-03-01', date '2000-03-01'),
            (3, null, date '2000-03-02', date '2000-03-02')
    ) as visits (visit_order, visit_concept_id, visit_start_date, visit_end_date)
    cross join (values (-1), (1)) as persons (person_id);
create table timeline.events as
    select
        person_id, visit_order, cast(day as int) as event_order,
        'measurement' as source_table, day as source_id, 3004249 as concept_id,
        8876 as unit_concept_id, visit_start_date + cast(day as int) as event_date,
        cast(null as int) as hour, day / 2 as value_as_number,
        cast(null as bigint) as value_as_concept_id
    from timeline.visits cross join range(3) as days (day);
"""


@pytest.fixture(scope="module")
def sequences(tmp_path_factory) -> pa.Table:
    """What `dbt run --selector cehrgpt` writes."""
    root = tmp_path_factory.mktemp("cehrgpt")
    with duckdb.connect(str(root / "warehouse.duckdb")) as con:
        con.execute(TIMELINE)
    (root / "cehrgpt").mkdir()
    project = str(Path(__file__).parents[2])
    done = subprocess.run(
        [
            sys.executable, "-m", "dbt.cli.main", "run", "--selector", "cehrgpt",
            "--project-dir", project, "--profiles-dir", project,
            "--target-path", str(root / "target"), "--log-path", str(root / "logs"),
            "--vars", json.dumps({"cehrgpt_folder": str(root / "cehrgpt")}),
        ],
        env=os.environ | {"OMOP_GPT_WAREHOUSE": str(root / "warehouse.duckdb")},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    return pq.read_table(root / "cehrgpt" / "patient_sequence")


def test_the_columns_are_those_of_cehrbert_data(sequences):
    found = {f.name: f.type for f in sequences.schema}
    assert list(found) == list(SCHEMA)
    for name, kind in SCHEMA.items():
        is_list = pa.types.is_list(kind)
        assert (found[name].value_type if is_list else found[name]) == (
            kind.value_type if is_list else kind
        ), name


def test_every_person_with_a_visit_is_one_row_of_equally_long_lists(sequences):
    rows = sequences.to_pylist()
    assert [row["person_id"] for row in rows] == [-1, 1]
    for row in rows:
        length = row["num_of_concepts"]
        assert row["orders"] == row["record_ranks"] == list(range(1, length + 1))
        for name, kind in SCHEMA.items():
            if pa.types.is_list(kind):
                assert len(row[name]) == length, name


def test_a_sequence_reads_as_cehr_gpt_writes_it(sequences):
    (row, _) = sequences.to_pylist()
    lab = "3004249"
    assert row["concept_ids"] == [
        "year:2000", "age:50", "Gender/0", "Race/0",
        "[VS]", "9201", lab, "i-D1", lab, "i-D1", lab, "i-D8", "Discharge/0", "[VE]",
        "D41", "[VS]", "9202", lab, lab, lab, "[VE]",
        "D1", "[VS]", "Visit/0", lab, lab, lab, "[VE]",
        "D305", "[VS]", "[DEATH]", "[VE]",
    ]  # fmt: skip
    values = [
        (number, unit)
        for token, number, unit, is_value in zip(
            row["concept_ids"],
            row["number_as_values"],
            row["units"],
            row["concept_value_masks"],
            strict=True,
        )
        if is_value
    ]
    assert values == [(0.0, "8876"), (0.5, "8876"), (1.0, "8876")] * 3
    assert row["num_of_visits"] == 4
    assert (row["ages"][0], row["ages"][-1]) == (-1, 51)
    assert (row["dates"][0], row["dates"][-1]) == (0, 1617)
