"""From token sequences to OMOP tables: sampled ones, or encoded real ones.

Knows the folders; the work is in the dbt models.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from omop_gpt import warehouse
from omop_gpt.encode import megabytes_of, variables_of
from omop_gpt.flags import flag
from omop_gpt.grammar import Grammar
from omop_gpt.source import check_file, source_files
from omop_gpt.step import (
    InputError,
    files_fingerprint,
    is_done,
    read_manifest,
    versions,
    whole_folder,
    write_manifest,
)
from omop_gpt.walk import walking

log = logging.getLogger(__name__)
ROUND_TRIP = "round_trip"


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """Decode sequences into OMOP tables."""

    patient_sequence_folder: str = flag("Sequences: sampled, or encoded real ones.")
    omop_folder: str = flag(
        "Where the OMOP tables are written as Parquet (the round trip writes none)."
    )
    source_omop_folder: str = flag(
        "OMOP tables that the sequences were encoded from: their vocabulary is passed "
        "through, their quality is measured beside, the round trip compares with them.",
        "",
    )
    cdm_release_date: str = flag(
        "Date of the release in cdm_source, YYYY-MM-DD; without it, the source's last.",
        "",
    )
    warehouse: str = flag(
        "DuckDB file for the tables; without it, <omop_folder>/../warehouse.duckdb.", ""
    )
    schema: str = flag(
        "Schema for the tables; `round_trip` also compares them with the source.",
        "synthetic",
    )
    check_quality: bool = flag(
        "Run OHDSI's quality checks on the tables, and on the source beside.", True
    )
    cpu_cores: int = flag("Processor cores.", os.cpu_count() or 1)
    memory: str = flag("Memory for DuckDB.", "4GB")


def sequence_files(folder: Path) -> list[Path]:
    """Parquet files of sequences in a folder and its split folders.

    Raises InputError where there are none.
    """
    if not folder.is_dir():
        raise InputError(f"--patient_sequence_folder {folder} is not a folder.")
    files = [
        file
        for pattern in ("*.parquet", "*/*.parquet")
        for file in sorted(folder.glob(pattern))
        if file.relative_to(folder).parts[0] != "vocabulary"
    ]
    if not files:
        raise InputError(
            f"{folder} holds no Parquet files of sequences: name the folder that "
            "`omop-gpt sample` or `omop-gpt encode` wrote them to."
        )
    return files


def find_vocabulary(folder: Path) -> Path:
    """Vocabulary folder in the sequences' folder, its parent or its grandparent."""
    folder = folder.resolve()
    for place in (folder, folder.parent, folder.parent.parent):
        if (place / "vocabulary" / "manifest.json").is_file():
            return place / "vocabulary"
    raise InputError(
        f"no vocabulary folder in {folder} or the two folders above it: "
        "copy the one that the sequences were written with beside them."
    )


def decode(config: DecodeConfig) -> Path:
    """Decode sequences into `omop_folder` and the warehouse; returns the folder."""
    started = time.time()
    folder = Path(config.patient_sequence_folder)
    files = sequence_files(folder)
    grammar = Grammar.load(find_vocabulary(folder))
    manifest = read_manifest(folder) or {}
    written_with = (manifest.get("result") or {}).get("vocabulary")
    if written_with not in (None, grammar.fingerprint):
        raise InputError(
            f"the sequences of {folder} were written with vocabulary "
            f"{written_with[:12]}, but {grammar.folder} is {grammar.fingerprint[:12]}: "
            "put the right vocabulary folder beside them."
        )
    round_trip = config.schema == ROUND_TRIP
    if round_trip and not config.source_omop_folder:
        raise InputError(
            "--schema round_trip compares with the source: give --source_omop_folder."
        )
    release = config.cdm_release_date
    try:
        release = str(date.fromisoformat(release)) if release else ""
    except ValueError:
        raise InputError(
            f"--cdm_release_date {release}: write a date as YYYY-MM-DD."
        ) from None
    if not megabytes_of(config.memory):
        raise InputError(f"--memory {config.memory}: give a size, as 4GB.")
    if config.source_omop_folder:
        source_files(config.source_omop_folder)
    settings = {
        "schema": config.schema,
        "cdm_release_date": release,
        "with_source": bool(config.source_omop_folder),
        "check_quality": config.check_quality and not round_trip,
    }
    inputs = files_fingerprint(files, folder) + grammar.fingerprint
    output = Path(config.omop_folder).resolve()
    database = Path(config.warehouse or output.parent / "warehouse.duckdb")
    if is_done(output, step="decode", settings=settings, inputs=inputs):
        warehouse.read_files_of(output, database, config.schema)  # maybe it was moved
        log.info("decode: done before, in %s", output)
        return output
    for file in files:
        check_file("generated_sequences", file)
    selector = "decode" if config.check_quality else "decode_tables"
    if round_trip:
        selector = ROUND_TRIP
    work_folder = output.with_name(f".{output.name}.dbt")
    source = Path(config.source_omop_folder)
    with whole_folder(output) as partial, ExitStack() as meanwhile:
        if config.cpu_cores > 1 and is_of_this_version(grammar):
            meanwhile.enter_context(
                walking(
                    files, grammar.folder, work_folder / "rows", config.cpu_cores - 1
                )
            )
        warehouse.build(
            selector,
            variables={
                # the round trip compares with the source as it was encoded
                **(variables_of(manifest.get("settings", {})) if round_trip else {}),
                "input_folder": str(source.resolve()) if round_trip else "",
                "source_omop_folder": (
                    str(source.resolve())
                    if config.source_omop_folder and not round_trip
                    else ""
                ),
                "patient_sequence_folder": str(folder.resolve()),
                "vocabulary_folder": str(grammar.folder.resolve()),
                "cdm_release_date": release,
                "made_by": made_by(manifest),
                "version": versions()["omop-gpt"],
                "omop_schema": config.schema,
                # the round trip is a check: its rows are real ones, and stay inside
                "omop_folder": "" if round_trip else str(partial),
            },
            warehouse=database,
            work_folder=work_folder,
            cores=config.cpu_cores,
            memory=config.memory,
        )
        write_manifest(
            partial,
            step="decode",
            settings=settings,
            inputs=inputs,
            started=started,
            result={
                "vocabulary": grammar.fingerprint,
                "rows": ledger_rows(database, config.schema),
                "quality": (
                    say_quality(database, config.schema)
                    if settings["check_quality"]
                    else {}
                ),
            },
        )
    warehouse.read_files_of(output, database, config.schema)
    shutil.rmtree(work_folder, ignore_errors=True)
    return output


def is_of_this_version(grammar: Grammar) -> bool:
    """Tell whether what may follow what is what the seeds say."""
    seeds = warehouse.project_folder() / "seeds" / "grammar"
    return all(
        (grammar.folder / "grammar" / name).read_bytes() == (seeds / name).read_bytes()
        for name in ("kinds.csv", "states.csv", "transitions.csv")
    )


def made_by(manifest: Mapping[str, Any]) -> str:
    """Say which model wrote the sequences; empty where they were not sampled."""
    if manifest.get("step") != "sample":
        return ""
    return f"model {manifest['result'].get('model', 'unknown')[:16]}"


def say_quality(database: Path, schema: str) -> dict[str, int]:
    """Tell what the quality checks found; returns how many have each verdict.

    And what became of those of each severity, as fatal_applied, fatal_failed and so on.
    A fatal one fails by a single row; others where they are worse than in the source,
    so of them those alone count that the source has rows for.
    """
    import duckdb

    with duckdb.connect(str(database), read_only=True) as con:
        verdicts = dict(
            con.execute(
                f"select verdict, count(*) from {schema}_quality.quality_report "
                "group by 1 order by 1"
            ).fetchall()
        )
        severities = con.execute(
            "select severity, count(*), count(*) filter (verdict = 'failed') "
            f"from {schema}_quality.quality_report where status <> 'not_applicable' "
            "and (severity = 'fatal' or source_denominator > 0) group by 1 order by 1"
        ).fetchall()
        worse = con.execute(
            "select check_name, cdm_table, cdm_field, rows_violated, denominator, "
            f"source_rows_violated, source_denominator from {schema}_quality"
            ".quality_report where verdict = 'failed' order by "
            "rows_violated / denominator desc, 1, 2, 3 limit 5"
        ).fetchall()
        (added,) = con.execute(
            f"select count(*) from {schema}.concept where vocabulary_id = 'omop-gpt'"
        ).fetchone()
    log.info(
        "quality: %d of %d checks that apply are kept, %d as well as in the source",
        verdicts.get("passed", 0) + verdicts.get("as_in_source", 0),
        sum(verdicts.values()) - verdicts.get("not_applicable", 0),
        verdicts.get("as_in_source", 0),
    )
    for name, table, field, violated, rows, source_violated, source_rows in worse:
        log.info(
            "quality: %s of %s: %d of %d rows, %d of %d in the source",
            name, ".".join(filter(None, (table, field))),
            violated, rows, source_violated, source_rows,
        )  # fmt: skip
    if added:
        log.info(
            "vocabulary: %d concepts are used and not in the source's table: added, "
            "marked with vocabulary_id omop-gpt",
            added,
        )
    for severity, applied, failed in severities:
        verdicts |= {f"{severity}_applied": applied, f"{severity}_failed": failed}
    return verdicts


def ledger_rows(database: Path, schema: str) -> dict[str, int]:
    """Rows by table, and sequences left out by reason, from the decode ledger."""
    import duckdb

    with duckdb.connect(str(database), read_only=True) as con:
        rows = con.execute(
            f"select outcome, target, row_count from {schema}_ledger.decode_ledger "
            "where outcome <> 'structure'"
        ).fetchall()
    return {f"{outcome}: {target}": count for outcome, target, count in rows}
