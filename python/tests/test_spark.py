"""The Spark target: of one source, the same tables and sequences as on DuckDB."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

pytest.importorskip(
    "dbt.adapters.spark",
    reason="dbt-spark is not installed: pip install 'omop-gpt[spark]'",
)
pytestmark = [pytest.mark.spark, pytest.mark.slow]

PROJECT = Path(__file__).parents[2]
TABLES = (
    "timeline.vocabulary",
    "timeline.event_values",
    "timeline.value_bins",
    "encode_steps.int_value_bins",
    "ledger.encode_ledger",
)
# all text, an absent column, ids as floats, another name
OTHER_FILES = {
    "condition_occurrence": (
        "CONDITION_OCCURRENCE.parquet",
        "cast(columns(*) as varchar)",
    ),
    "observation": ("observation.parquet", "* exclude (unit_concept_id)"),
    "measurement": (
        "measurement.parquet",
        "* replace (visit_occurrence_id::double as visit_occurrence_id)",
    ),
    "device_exposure": ("devices_exposure.parquet", "*"),
}
# so few rows are done before code for them is compiled
SPARK_DEFAULTS = """
spark.sql.warehouse.dir {folder}/tables
spark.sql.shuffle.partitions 2
spark.sql.adaptive.enabled false
spark.sql.codegen.wholeStage false
spark.sql.codegen.factoryMode NO_CODEGEN
spark.driver.extraJavaOptions -XX:TieredStopAtLevel=1
"""


def encode_on_spark(source: str, folder: str) -> None:
    """The commands of docs/spark.md in one process: the catalog stays in memory."""
    from dbt.cli.main import dbtRunner
    from omop_gpt import pack

    pack.start_spark(1, "1g")
    place = ["--project-dir", PROJECT, "--profiles-dir", PROJECT, "--target", "spark"]
    place += ["--target-path", f"{folder}/target", "--log-path", f"{folder}/logs"]
    build = ["build", "--selector", "encode", "--vars", f"{{input_folder: {source}}}"]
    # all tests take a minute more, and say what the comparison says
    build += ["--exclude-resource-type", "test", "unit_test"]
    for command in build, ["test", "--select", "assert_encode_ledger_adds_up"]:
        outcome = dbtRunner().invoke([*command, *map(str, place)])
        if not outcome.success:
            sys.exit(1)
        assert outcome.result.results
    sys.argv[1:] = ["--timeline_schema", "timeline"]
    sys.argv += ["--output_folder", f"{folder}/patient_sequence"]
    pack.main()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dirty patients in files as others write them: see OTHER_FILES."""
    folder = tmp_path_factory.mktemp("source")
    command = [sys.executable, "-m", "omop_gpt", "simulate", "--num_of_patients", "150"]
    subprocess.run([*command, "--dirty", "--output_folder", folder], check=True)
    for table, (file, columns) in OTHER_FILES.items():
        rows = duckdb.sql(
            f"select {columns} from '{folder}/{table}/part-00000.parquet'"
        )
        rows.write_parquet(str(folder / file))
        shutil.rmtree(folder / table)
    return folder


def start(command: list, folder: Path, log: str, **environment: str):
    """Start a command in `folder`, which takes whatever it leaves behind."""
    with (folder / log).open("w") as file:
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=folder,
            env=os.environ | environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def sequences_of(folder: Path) -> str:
    return (
        "select regexp_extract(filename, '([^/]+)/[^/]+$', 1) as split, person_id, "
        "token_ids, token_count, visit_count "
        f"from read_parquet('{folder}/patient_sequence/*/part-*', filename = true)"
    )


def test_spark_and_duckdb_write_the_same(source, tmp_path):
    (tmp_path / "spark-defaults.conf").write_text(
        SPARK_DEFAULTS.format(folder=tmp_path)
    )
    on_spark = start(
        [__file__, source, tmp_path],
        tmp_path,
        "spark.log",
        SPARK_CONF_DIR=str(tmp_path),
    )
    encode = ["-m", "omop_gpt", "encode", "--cores", 1]
    encode += ["--input_folder", source, "--output_folder", tmp_path / "duckdb"]
    on_duckdb = start(encode, tmp_path, "duckdb.log")
    done = {"duckdb": on_duckdb.wait(), "spark": on_spark.wait()}
    for name, code in done.items():
        log = (tmp_path / f"{name}.log").read_text()
        assert code == 0, log[-2000:]
        assert "table observation has no unit_concept_id: NULL" in log

    pairs = {
        "sequences": (sequences_of(tmp_path / "duckdb"), sequences_of(tmp_path)),
    }
    for table in TABLES:
        files = f"{tmp_path}/tables/{table.replace('.', '.db/')}/*.parquet"
        pairs[table] = (f"from {table}", f"from read_parquet('{files}')")
    warehouse = tmp_path / "duckdb" / "warehouse.duckdb"
    with duckdb.connect(str(warehouse), read_only=True) as con:
        for name, (expected, found) in pairs.items():
            assert con.sql(expected).columns == con.sql(found).columns, name
            assert len(con.sql(expected)) > 0, name
            for some, others in ((expected, found), (found, expected)):
                left = con.sql(f"({some}) except all ({others})").fetchall()
                assert not left, f"{name}: {len(left)} rows differ, as {left[0]}"


if __name__ == "__main__":
    encode_on_spark(*sys.argv[1:])
