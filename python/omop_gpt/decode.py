"""From token sequences to OMOP tables: sampled ones, or encoded real ones.

Knows the folders; the work is in the dbt models.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from omop_gpt import warehouse
from omop_gpt.encode import variables_of
from omop_gpt.flags import flag
from omop_gpt.grammar import Grammar
from omop_gpt.step import (
    InputError,
    files_fingerprint,
    is_done,
    read_manifest,
    whole_folder,
    write_manifest,
)

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
        "OMOP tables that the sequences were encoded from: the round trip compares "
        "with them.",
        "",
    )
    warehouse: str = flag(
        "DuckDB file for the tables; without it, <omop_folder>/../warehouse.duckdb.", ""
    )
    schema: str = flag(
        "Schema for the tables; `round_trip` also compares them with the source.",
        "synthetic",
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
    settings = {"schema": config.schema}
    inputs = files_fingerprint(files, folder) + grammar.fingerprint
    output = Path(config.omop_folder)
    if is_done(output, step="decode", settings=settings, inputs=inputs):
        log.info("decode: done before, in %s", output)
        return output
    database = Path(config.warehouse or output.parent / "warehouse.duckdb")
    work_folder = output.with_name(f".{output.name}.dbt")
    source = Path(config.source_omop_folder)
    with whole_folder(output) as partial:
        warehouse.build(
            ROUND_TRIP if round_trip else "decode",
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
                "omop_schema": config.schema,
                # the round trip is a check: its rows are real ones, and stay inside
                "omop_folder": "" if round_trip else str(partial.resolve()),
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
            },
        )
    shutil.rmtree(work_folder, ignore_errors=True)
    return output


def ledger_rows(database: Path, schema: str) -> dict[str, int]:
    """Rows by table, and sequences left out by reason, from the decode ledger."""
    import duckdb

    with duckdb.connect(str(database), read_only=True) as con:
        rows = con.execute(
            f"select outcome, target, row_count from {schema}_ledger.decode_ledger "
            "where outcome <> 'structure'"
        ).fetchall()
    return {f"{outcome}: {target}": count for outcome, target, count in rows}
