"""Simulate patients: an OMOP CDM in which no row describes a real person.

The medicine lies in `simulation/*.csv`, the lives in `simulation/*.py`; this module
writes them as Parquet, block by block. Knows nothing of tokens, dbt or models.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from omop_gpt.flags import flag
from omop_gpt.simulation import SOURCE_NAME
from omop_gpt.simulation.dirt import Dirt
from omop_gpt.simulation.events import Clinic, Table
from omop_gpt.simulation.knowledge import MISSING, Knowledge, read
from omop_gpt.step import InputError, whole_folder

logger = logging.getLogger(__name__)

PATIENTS_PER_BLOCK = 10_000  # bounds memory; the rows do not depend on it
RELEASED = np.datetime64("2024-01-01")  # fixed: the same seed gives the same bytes
ARROW_TYPES = {
    "integer": pa.int64(),
    "float": pa.float64(),
    "date": pa.date32(),
    "datetime": pa.timestamp("us"),
    "string": pa.string(),
}
MICROSECONDS = 60_000_000  # in a minute


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """Write an OMOP CDM of simulated patients."""

    output_folder: str = flag("Folder to write: one folder of Parquet per CDM table.")
    num_of_patients: int = flag("How many patients to simulate.", 1000)
    seed: int = flag("Another seed gives other patients.", 42)
    dirty: bool = flag("Add the faults that real data have, to test with.", False)

    def __post_init__(self) -> None:
        """Refuse what makes no sense. Raises InputError."""
        if not self.output_folder:
            raise InputError("--output_folder is empty: name a folder to write.")
        if self.num_of_patients < 1:
            raise InputError(
                f"--num_of_patients {self.num_of_patients}: give a number from 1 on."
            )
        if self.seed < 0:
            raise InputError(f"--seed {self.seed}: give a number from 0 on.")


def simulate(config: SimulateConfig) -> dict[str, int]:
    """Write `<output_folder>/<table>/part-*.parquet`; returns rows per table.

    Raises InputError if the folder holds something already.
    """
    knowledge = Knowledge()
    clinic = Clinic(knowledge, config.seed)
    with whole_folder(config.output_folder) as folder:
        writer = Writer(folder)
        for name, table in _vocabulary(knowledge).items():
            writer.write(name, table)
        with tqdm(total=config.num_of_patients, unit=" patients") as progress:
            for first in range(0, config.num_of_patients, PATIENTS_PER_BLOCK):
                last = min(first + PATIENTS_PER_BLOCK, config.num_of_patients)
                tables = clinic.block(np.arange(first, last))
                if config.dirty:
                    Dirt(tables, clinic.draws).add()
                for name, table in tables.items():
                    writer.write(name, table)
                progress.update(last - first)
    logger.info("%s: %s patients", config.output_folder, f"{config.num_of_patients:,}")
    return dict(writer.rows)


class Writer:
    """Writes blocks of tables as Parquet parts with all columns of CDM 5.4."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[str, int] = defaultdict(int)
        self.parts: dict[str, int] = defaultdict(int)
        self.columns: dict[str, dict[str, pa.DataType]] = defaultdict(dict)
        for row in read("columns"):
            self.columns[row["table"]][row["column"]] = ARROW_TYPES[row["type"]]

    def write(self, name: str, table: Table) -> None:
        """Write one part; a table's own ids run on unless they are given."""
        rows = len(next(iter(table.values())))
        if name != "person":
            table = {f"{name}_id": self.rows[name] + 1 + np.arange(rows)} | table
        arrays = {
            column: _array(table.get(column), type_, rows)
            for column, type_ in self.columns[name].items()
        }
        path = self.folder / name / f"part-{self.parts[name]:05}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(arrays), path, compression="zstd")
        self.parts[name] += 1
        self.rows[name] += rows


def _array(values: np.ndarray | None, type_: pa.DataType, rows: int) -> pa.Array:
    """Turn days, minutes and numbers into Arrow; missing ones become NULL."""
    if values is None:
        return pa.nulls(rows, type_)
    if values.dtype.kind == "f":
        return pa.array(values, type_, mask=np.isnan(values))
    if values.dtype.kind != "i":
        return pa.array(values, type_)
    mask = values == MISSING
    if pa.types.is_timestamp(type_):
        values = np.where(mask, 0, values) * MICROSECONDS
    if pa.types.is_date(type_):
        values = np.where(mask, 0, values).astype(np.int32)
    return pa.array(values, mask=mask).cast(type_)


def _vocabulary(knowledge: Knowledge) -> dict[str, Table]:
    """Return the concepts in use, their ancestors, and where the data come from."""
    source = {
        "cdm_source_name": SOURCE_NAME,
        "cdm_source_abbreviation": "simulated",
        "cdm_holder": "omop-gpt",
        "source_description": "Simulated by omop-gpt: no row describes a real person.",
        "cdm_version": "5.4",
        "vocabulary_version": "a selection, see the table concept",
    }
    cdm_source = {name: np.array([text], object) for name, text in source.items()}
    cdm_source |= {
        "source_release_date": np.array([RELEASED]),
        "cdm_release_date": np.array([RELEASED]),
        "cdm_version_concept_id": np.array([756265]),
    }
    return {
        "concept": _columns(knowledge.concepts),
        "concept_ancestor": _columns(read("concept_ancestor")),
        "cdm_source": cdm_source,
    }


def _columns(rows: list[dict[str, str]]) -> Table:
    """Turn rows of text into typed columns; no text is NULL."""
    table: Table = {}
    for name in rows[0]:
        values = [row[name] or None for row in rows]
        if name.endswith("_date"):
            table[name] = np.array(values, "datetime64[D]")
        elif name.endswith("concept_id") or name.endswith("_separation"):
            table[name] = np.array(values, np.int64)
        else:
            table[name] = np.array(values, object)
    return table
