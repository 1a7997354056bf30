"""From OMOP tables to packed token sequences: dbt orders, Spark cuts.

Knows the folders; the work is in the dbt models and in pack.py.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from omop_gpt import pack, warehouse
from omop_gpt.flags import flag
from omop_gpt.grammar import read_csv, save_language
from omop_gpt.source import check_contents, source_files
from omop_gpt.step import (
    InputError,
    MachineError,
    alone_in,
    cache_folder,
    files_fingerprint,
    manifest_of,
    whole_folder,
    write_manifest,
)

log = logging.getLogger(__name__)


CONCEPT_ZERO = ("left_out", "kept", "source_code")
TIME_SCHEMES = ("day", "week", "month")


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """What is encoded, and how: each is a variable of the dbt project."""

    start_date: str = flag("Only what happened on or after this day (ISO).", "")
    domain_table_list: tuple[str, ...] = flag(
        "Event tables to encode; without it, all six.", ()
    )
    include_death: bool = flag("Encode deaths.", True)
    min_num_of_patients: int = flag(
        "Concepts of fewer persons become their nearest ancestor with enough, "
        "else they are left out; 0: all stay as they are.",
        0,
    )
    with_drug_rollup: bool = flag("Drugs become their ingredient.", False)
    apply_age_filter: bool = flag(
        "Leave out what starts in or after the year in which a person turns 90.", False
    )
    exclude_condition_type_concept_ids: tuple[int, ...] = flag(
        "Conditions of these types are left out.", ()
    )
    concept_zero: str = flag(
        "Events of concept 0: left_out, kept, or source_code (vocabulary/code).",
        "left_out",
    )
    att_type: str = flag("Dates to the day, week or month.", "day")
    include_inpatient_hour_token: bool = flag("Encode the hour of events.", True)
    include_quantity: bool = flag("Encode quantities, as bins.", False)
    include_end_date: bool = flag("Encode the end dates of events.", False)
    max_uncast_share: float = flag(
        "Stop where more of a column's values than this share cannot be cast.", 0.01
    )

    def __post_init__(self) -> None:
        """Check what can be checked without reading data."""
        if self.start_date:
            try:
                date.fromisoformat(self.start_date)
            except ValueError:
                raise InputError(
                    f"--start_date {self.start_date} is not a date: write 1985-01-01."
                ) from None
        tables = event_tables() if self.domain_table_list else []
        for name in self.domain_table_list:
            if name not in tables:
                raise InputError(
                    f"--domain_table_list {name}: one of {', '.join(tables)}."
                )
        for name, known in (("concept_zero", CONCEPT_ZERO), ("att_type", TIME_SCHEMES)):
            if getattr(self, name) not in known:
                raise InputError(
                    f"--{name} {getattr(self, name)}: one of {', '.join(known)}."
                )
        if self.min_num_of_patients < 0:
            raise InputError(
                f"--min_num_of_patients {self.min_num_of_patients}: give 0 or more."
            )
        if not 0 <= self.max_uncast_share <= 1:
            raise InputError(
                f"--max_uncast_share {self.max_uncast_share}: give a share, 0 to 1."
            )


def event_tables() -> list[str]:
    """Names of the OMOP tables that hold events, as the grammar lists them."""
    seed = warehouse.project_folder() / "seeds" / "grammar" / "event_tables.csv"
    return [row["source_table"] for row in read_csv(seed)]


# bytes that a source's rows take on the way, for each of a file of its kind
IN_MEMORY = {".parquet": 8, ".duckdb": 4, ".gz": 8}

FIELD_OF_FLAG = {
    "include_inpatient_hour_token": "hour",
    "include_quantity": "quantity",
    "include_end_date": "end",
}


def variables_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write options of encode, as a manifest has them, as variables of dbt."""
    names = {field.name for field in dataclasses.fields(EncodeOptions)}
    return {
        **{
            name: list(value) if isinstance(value, tuple) else value
            for name, value in settings.items()
            if name in names - FIELD_OF_FLAG.keys()
        },
        "fields": {
            field: int(settings[name])
            for name, field in FIELD_OF_FLAG.items()
            if name in settings
        },
    }


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(EncodeOptions):
    """Encode an OMOP source into token sequences."""

    input_folder: str = flag(
        "OMOP tables: a folder with one folder or file per table, or a .duckdb file."
    )
    output_folder: str = flag(
        "Where warehouse, timeline and sequences are written. An encode of other rows "
        "there is gone on from: vocabulary and bins stay, changed persons are encoded."
    )
    refit: bool = flag(
        "Start anew where an earlier encode could be gone on from.", False
    )
    cores: int = flag("Processor cores for DuckDB and Spark.", os.cpu_count() or 1)
    memory: str = flag("Memory, shared out between DuckDB and Spark.", "4GB")

    def __post_init__(self) -> None:
        """Check what can be checked without reading data."""
        super().__post_init__()
        if self.cores < 1:
            raise InputError(f"--cores {self.cores}: give at least 1.")


def encode(config: EncodeConfig) -> Path:
    """Encode `input_folder` into `output_folder`; returns the sequences' folder."""
    started = time.time()
    files = source_files(config.input_folder)
    root = Path(config.input_folder)
    inputs = files_fingerprint(
        [file for group in files.values() for file in group],
        root if root.is_dir() else root.parent,
    )
    settings = dataclasses.asdict(config)
    # where and how fast it ran does not change what comes out
    for name in ("input_folder", "output_folder", "refit", "cores", "memory"):
        del settings[name]
    output = Path(config.output_folder).resolve()
    sequences = output / "patient_sequence"
    earlier = manifest_of(sequences, step="encode", settings=settings)
    is_same = earlier is not None and earlier["inputs"] == inputs
    if is_same and not (config.refit and earlier["result"]["kept_persons"]):
        read_timeline_of(output)  # maybe it was moved
        log.info("encode: done before, in %s", sequences)
        return sequences
    before = output / "warehouse.duckdb" if earlier and not config.refit else None
    if before and not before.is_file():
        raise InputError(
            f"{before} is missing: without it this encode cannot go on from the one in "
            f"{output}. Put it back, or start anew with --refit."
        )
    if before:
        check_before(before)
        log.info("encode: going on from the one in %s", output)

    duckdb_memory, spark_memory = share_memory(config.memory)
    try:
        pack.find_java()
    except RuntimeError as error:
        raise MachineError(str(error)) from None
    output.mkdir(parents=True, exist_ok=True)
    with alone_in(output):
        partial = output / ".encode.partial"
        work_folder = output / ".encode.dbt"  # stays where dbt failed, with its log
        shutil.rmtree(partial, ignore_errors=True)
        timeline = partial / "timeline"
        timeline.mkdir(parents=True)
        database = partial / "warehouse.duckdb"
        try:
            # Spark takes as long to start as dbt takes for a small source: side by side
            with pack.BackgroundSpark(
                config.cores, spark_memory, cache_folder()
            ) as spark:
                warehouse.build(
                    "encode",
                    variables={
                        "input_folder": str(root.resolve()),
                        "timeline_folder": str(timeline.resolve()),
                        "before_warehouse": str(before or ""),
                        **variables_of(settings),
                    },
                    warehouse=database,
                    work_folder=work_folder,
                    cores=config.cores,
                    memory=duckdb_memory,
                    scratch=scratch_file(files, duckdb_memory, partial),
                )
                check_anybody(database)
                with whole_folder(partial / "patient_sequence") as folder:
                    pack.pack(
                        str(timeline.resolve()), str(folder.resolve()), spark.session()
                    )
                    spark.stop()
                    facts, counts = measure(database, folder)
                    save_language(
                        folder / "vocabulary",
                        grammar=warehouse.project_folder() / "seeds" / "grammar",
                        timeline=timeline,
                        facts=facts,
                    )
                for folder in (timeline, partial / "patient_sequence"):
                    write_manifest(
                        folder,
                        step="encode",
                        settings=settings,
                        inputs=inputs,
                        started=started,
                        result=counts,
                    )
                publish(partial, output)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, RuntimeError):
                # a damaged page of a source file fails in a model, which names no file
                check_contents(files)
            raise
        shutil.rmtree(work_folder, ignore_errors=True)
    log.info("encode: %s", json.dumps(counts["persons"]))
    return sequences


def check_before(database: Path) -> None:
    """Raise InputError if an earlier encode's warehouse cannot be gone on from."""
    import duckdb

    with duckdb.connect(str(database), read_only=True) as con:
        found = con.execute(
            "from duckdb_tables() where table_name = 'int_persons_hashed'"
        ).fetchone()
    if not found:
        raise InputError(
            f"{database} is of an older version, which this one cannot go on from: "
            "start anew with --refit."
        )


def check_anybody(database: Path) -> None:
    """Raise InputError, with the reasons, if no person of the source was encoded."""
    import duckdb

    with duckdb.connect(str(database), read_only=True) as con:
        if con.execute("from timeline.persons limit 1").fetchone():
            return
        reasons = con.execute(
            "select reason, row_count from ledger.encode_ledger where "
            "source_table = 'person' and outcome = 'left_out' order by 2 desc, 1"
        ).fetchall()
    told = ", ".join(f"{reason}: {count}" for reason, count in reasons)
    raise InputError(
        f"person: none can be encoded ({told or 'it has no row'}): "
        "mend the table, or name another --input_folder."
    )


def share_memory(memory: str) -> tuple[str, str]:
    """Share a size such as 4GB out: three quarters for DuckDB, a quarter for Spark.

    Spark streams files through, and needs no more than 2 GB. Raises InputError for
    what is no size, or below 2 GB.
    """
    megabytes = megabytes_of(memory)
    if megabytes < 2048:
        raise InputError(f"--memory {memory}: give a size of at least 2GB, as 4GB.")
    spark = min(megabytes // 4, 2048)
    return f"{megabytes - spark}MiB", f"{spark}m"


def megabytes_of(memory: str) -> int:
    """Return the megabytes of a size such as 4GB; 0 for what is no size."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([gm])(?:b|ib)?", memory.strip().lower())
    return int(float(found[1]) * (1024 if found[2] == "g" else 1)) if found else 0


def scratch_file(
    files: Mapping[str, list[Path]], memory: str, folder: Path
) -> Path | None:
    """Where rows on the way lie: a file in `folder`, or memory (None) if they fit."""
    needed = sum(
        file.stat().st_size * IN_MEMORY.get(file.suffix.lower(), 1)
        for name, group in files.items()
        if not name.startswith("concept")
        for file in group
    )
    fits = needed <= int(memory.removesuffix("MiB")) * 2**20
    return None if fits else folder / "scratch.duckdb"


def measure(database: Path, sequences: Path) -> tuple[dict, dict]:
    """Facts that sampling must know of the training split, and counts of the run."""
    import duckdb

    with duckdb.connect(str(database), read_only=True) as con:
        # an end is where an event ends, or a supply runs out: after any visit, maybe
        first, last, last_end, visits, events = con.execute(
            """
            with train as (
                select person_id, death_date from timeline.persons
                where split = 'train'
            ), visits as (
                select
                    min(least(visit_start_date, visit_end_date)) as first_date,
                    max(greatest(visit_start_date, visit_end_date)) as last_date
                from timeline.visits
                where person_id in (select person_id from train)
            ), events as (
                select
                    min(event_date) as first_date,
                    max(event_date) as last_date,
                    max(greatest(end_date, event_date + days_supply - 1)) as last_end
                from timeline.events
                where person_id in (select person_id from train)
            ), deaths as (
                select min(death_date) as first_date, max(death_date) as last_date
                from train
            )
            select
                least(visits.first_date, events.first_date, deaths.first_date),
                greatest(visits.last_date, events.last_date, deaths.last_date),
                greatest(
                    visits.last_date,
                    events.last_date,
                    deaths.last_date,
                    events.last_end
                ),
                (select count(*) from timeline.visits),
                (select count(*) from timeline.events)
            from visits, events, deaths
            """
        ).fetchone()
        persons = dict(
            con.execute(
                "select split, count(*) from timeline.persons group by 1"
            ).fetchall()
        )
        longest, tokens = con.execute(
            "select max(token_count) filter (split = 'train'), sum(token_count) from ("
            " select token_count, parse_filename(parse_dirpath(filename)) as split"
            " from read_parquet(? || '/*/part-*.parquet', filename = true))",
            [str(sequences)],
        ).fetchone()
        rows = {
            "persons": sum(persons.values()),
            "visits": visits,
            "events": events,
            "tokens": int(tokens or 0),
        }
        free = con.execute(
            """
            select min(first_id) from (
                select cast(power(10, unnest(range(9, 19))) as bigint) as first_id
            )
            where not exists (
                select 1 from timeline.persons
                where person_id // first_id = 1
            )
            """
        ).fetchone()[0]
        (kept,) = con.execute(
            "select count(*) from encode_steps.int_persons_kept"
        ).fetchone()
        drift = con.execute(
            "select event_token, field, drift from ledger.bin_drift "
            "order by drift desc, event_token, field limit 1"
        ).fetchone()
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
        # the first range 10…0 to 19…9 in which no real person_id lies
        "synthetic_person_ids": free or 10**9,
    }
    if kept:
        log.info("encode: %d of %d persons are as before", kept, rows["persons"])
    if kept and drift:
        log.info(
            "encode: numbers lie up to %.0f %% of their rows off their bins (%s, %s); "
            "all in ledger.bin_drift; --refit fits bins and vocabulary anew",
            100 * drift[2], *drift[:2],
        )  # fmt: skip
    return facts, {"persons": persons, "rows": rows, "kept_persons": kept}


def publish(partial: Path, output: Path) -> None:
    """Move what was made beside into place, and let the warehouse read it there."""
    for name in ("warehouse.duckdb", "timeline", "patient_sequence"):
        target = output / name
        if target.is_dir():
            shutil.rmtree(target)
        elif target.exists():
            target.unlink()
        (partial / name).rename(target)
    shutil.rmtree(partial)
    read_timeline_of(output)


def read_timeline_of(output: Path) -> None:
    """Let the warehouse read the timeline where it lies now."""
    warehouse.read_files_of(
        output / "timeline", output / "warehouse.duckdb", "timeline"
    )
