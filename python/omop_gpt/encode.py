"""From OMOP tables to packed token sequences: dbt orders, Spark cuts.

Knows the folders; the work is in the dbt models and in pack.py.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from omop_gpt import pack, warehouse
from omop_gpt.flags import flag
from omop_gpt.grammar import save_language
from omop_gpt.source import source_files, source_tables
from omop_gpt.step import (
    InputError,
    files_fingerprint,
    is_done,
    whole_folder,
    write_manifest,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """Encode an OMOP source into token sequences."""

    input_folder: str = flag(
        "OMOP tables: a folder with one folder or file per table, or a .duckdb file."
    )
    output_folder: str = flag("Where warehouse, timeline and sequences are written.")
    start_date: str = flag("Only what happened on or after this day (ISO).", "")
    cores: int = flag("Processor cores for DuckDB and Spark.", os.cpu_count() or 1)
    memory: str = flag("Memory for DuckDB and for Spark, which run in turn.", "4GB")

    def __post_init__(self) -> None:
        """Check what can be checked without reading data."""
        if self.start_date:
            try:
                date.fromisoformat(self.start_date)
            except ValueError:
                raise InputError(
                    f"--start_date {self.start_date} is not a date: write 1985-01-01."
                ) from None
        if self.cores < 1:
            raise InputError(f"--cores {self.cores}: give at least 1.")


def encode(config: EncodeConfig) -> Path:
    """Encode `input_folder` into `output_folder`; returns the sequences' folder."""
    started = time.time()
    files = source_files(config.input_folder)
    for name in source_tables():
        if name not in files and not config.input_folder.endswith(".duckdb"):
            log.info("no %s table: going on without it", name)
    root = Path(config.input_folder)
    inputs = files_fingerprint(
        [file for group in files.values() for file in group],
        root if root.is_dir() else root.parent,
    )
    settings = dataclasses.asdict(config)
    # where and how fast it ran does not change what comes out
    for name in ("input_folder", "output_folder", "cores", "memory"):
        del settings[name]
    output = Path(config.output_folder)
    sequences = output / "patient_sequence"
    if is_done(sequences, step="encode", settings=settings, inputs=inputs):
        log.info("encode: done before, in %s", sequences)
        return sequences

    partial = output / ".encode.partial"
    work_folder = output / ".encode.dbt"  # stays where dbt failed, with its log
    shutil.rmtree(partial, ignore_errors=True)
    timeline = partial / "timeline"
    timeline.mkdir(parents=True)
    try:
        warehouse.build(
            "encode",
            variables={
                "input_folder": str(root.resolve()),
                "timeline_folder": str(timeline.resolve()),
                "start_date": config.start_date,
            },
            warehouse=partial / "warehouse.duckdb",
            work_folder=work_folder,
            cores=config.cores,
            memory=config.memory,
        )
        counts = pack_timeline(config, timeline, partial)
        publish(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(work_folder, ignore_errors=True)
    for folder in (output / "timeline", sequences):
        write_manifest(
            folder,
            step="encode",
            settings=settings,
            inputs=inputs,
            started=started,
            result=counts,
        )
    log.info("encode: %s", json.dumps(counts["persons"]))
    return sequences


def pack_timeline(config: EncodeConfig, timeline: Path, partial: Path) -> dict:
    """Cut the timeline into sequences, with the language beside them; return counts."""
    with whole_folder(partial / "patient_sequence") as folder:
        spark = pack.start_spark(config.cores, spark_memory(config.memory))
        try:
            pack.pack(str(timeline.resolve()), str(folder.resolve()), spark)
        finally:
            spark.stop()
        pack.name_plainly(folder)
        facts, counts = measure(timeline)
        save_language(
            folder / "vocabulary",
            grammar=warehouse.project_folder() / "seeds" / "grammar",
            timeline=timeline,
            facts=facts,
        )
    return counts


def spark_memory(memory: str) -> str:
    """Write a memory size as Spark reads it: 4GB as 4g."""
    return memory.lower().removesuffix("b").removesuffix("i")


def measure(timeline: Path) -> tuple[dict, dict]:
    """Facts that sampling must know of the training split, and counts of the run."""
    import duckdb

    con = duckdb.connect()
    for name in ("persons", "visits", "events", "tokens"):
        con.execute(
            f"create view {name} as from read_parquet('{timeline}/{name}/*.parquet')"
        )
    # an end is where an event ends, or a supply runs out: later than any visit, maybe
    first, last, last_end = con.execute(
        """
        select
            min(a_date) filter (not is_end),
            max(a_date) filter (not is_end),
            max(a_date)
        from (
            select person_id, visit_start_date as a_date, false as is_end from visits
            union all select person_id, visit_end_date, false from visits
            union all select person_id, event_date, false from events
            union all select person_id, death_date, false from persons
            union all select person_id, end_date, true from events
            union all select person_id, event_date + days_supply - 1, true from events
        )
        where person_id in (select person_id from persons where split = 'train')
        """
    ).fetchone()
    persons = dict(
        con.execute("select split, count(*) from persons group by 1").fetchall()
    )
    (longest,) = con.execute(
        """
        select max(token_count) from (
            select count(*) as token_count from tokens
            where split = 'train' group by person_id
        )
        """
    ).fetchone()
    rows = {
        name: con.execute(f"select count(*) from {name}").fetchone()[0]
        for name in ("persons", "visits", "events", "tokens")
    }
    if not persons.get("train"):
        raise InputError(
            f"{rows['persons']} persons leave the training split empty: "
            "give a source with more persons."
        )
    facts = {
        "first_date": str(first or "1970-01-01"),
        "last_date": str(last or "1970-01-01"),
        "last_end_date": str(last_end or "1970-01-01"),
        "longest_history": longest,
    }
    return facts, {"persons": persons, "rows": rows}


def publish(partial: Path, output: Path) -> None:
    """Move what was made beside into place."""
    for name in ("warehouse.duckdb", "timeline", "patient_sequence"):
        target = output / name
        if target.is_dir():
            shutil.rmtree(target)
        elif target.exists():
            target.unlink()
        (partial / name).rename(target)
    shutil.rmtree(partial)
