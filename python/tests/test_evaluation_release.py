"""What earlier steps say of a release, against rows written by hand."""

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omop_gpt.evaluation.release import measure_quality, measure_sequences, origin_of
from omop_gpt.evaluation.results import Results
from omop_gpt.step import write_manifest
from scipy import stats


def told(results):
    return {m.name: m.value for m in results.metrics}


def manifest(folder, step, result, **settings):
    write_manifest(
        folder, step=step, settings=settings, inputs="", started=0, result=result
    )


def test_sequences_are_as_long_as_those_of_the_holdout(tmp_path):
    real, ours = [10, 20, 20, 40], [20, 20, 60, 60, 60]
    folders = (
        tmp_path / "real" / "patient_sequence" / "holdout",
        tmp_path / "generated_sequences",
    )
    results = Results()
    asked = (duckdb.connect(), tmp_path / "real", tmp_path / "omop", results)
    measure_sequences(*asked)
    assert not results.metrics  # nothing was sampled here
    for folder, counts in zip(folders, (real, ours)):
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"token_count": counts}), folder / "part-0.parquet")
    manifest(folders[1], "sample", {"ended_by_limit": 2, "not_histories": 1})
    measure_sequences(*asked)
    assert told(results) == {
        "tokens_per_person_ks": pytest.approx(stats.ks_2samp(real, ours).statistic),
        "ended_by_limit_share": 2 / 5,
        "not_histories_share": 1 / 5,
    }


def test_quality_is_held_against_the_source(tmp_path):
    omop = tmp_path / "omop"
    omop.mkdir()
    con = duckdb.connect()
    results = Results()
    measure_quality(con, omop, results)
    assert not results.metrics  # the checks were not run
    found = {"fatal_applied": 400, "fatal_failed": 0, "convention_applied": 80}
    found |= {"convention_failed": 3, "characterization_applied": 300}
    found |= {"characterization_failed": 2}
    manifest(omop, "decode", {"quality": found}, schema="made")
    measure_quality(con, omop, results)
    values = {"fatal_failures": 0, "convention_failures": 3, "plausibility_failures": 2}
    assert told(results) == values
    assert [m.n for m in results.metrics] == [400, 80, 300]
    con.execute("create schema made_quality")
    con.execute(
        """
        create table made_quality.quality_report as
        from (values
            ('plausibleGender', 'person', '', 7, 10, 100, 0, 200),
            ('isRequired', 'death', 'death_date', 0, 0, 50, 0, 50),
            ('fkDomain', 'death', 'cause_concept_id', 0, 1, 50, 0, 50),
            ('plausibleValueLow', 'death', 'death_date', 0, 0, 9, 0, 0),
            ('measureValueCompleteness', 'death', 'x', 0, 9, 9, 0, 9)
        ) as checks (
            check_name, cdm_table, cdm_field, concept_id, rows_violated, denominator,
            source_rows_violated, source_denominator
        )
        """
    )
    results = Results()
    measure_quality(con, omop, results)
    assert told(results) == values | {"quality_agreement": pytest.approx(1 / 3)}
    assert results.curves["quality_differences"] == [
        {
            "cohort": "synthetic", "check": "plausibleGender person 7",
            "rate": pytest.approx(0.1), "source_rate": 0,
        },
        {
            "cohort": "synthetic", "check": "fkDomain death cause_concept_id",
            "rate": pytest.approx(0.02), "source_rate": 0,
        },
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "description", "origin"),
    [
        ("Simulated patients", None, "Simulated patients"),
        ("Our hospital", "made with Synthea", "Our hospital"),
        ("Our hospital", "all patients since 1990", ""),
        (None, None, ""),
    ],
)
def test_a_source_that_is_made_up_says_so(tmp_path, name, description, origin):
    con = duckdb.connect()
    assert origin_of(con, "") == origin_of(con, str(tmp_path)) == ""
    (tmp_path / "cdm_source").mkdir()
    row = {"CDM_SOURCE_NAME": [name], "source_description": [description]}
    types = pa.schema([(column, pa.string()) for column in row])
    pq.write_table(pa.table(row, types), tmp_path / "cdm_source" / "part-0.parquet")
    assert origin_of(con, str(tmp_path)) == origin
