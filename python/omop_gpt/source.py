"""Find the OMOP tables of an input folder, and refuse broken files before the work.

Knows files and their formats; what the columns mean is in the dbt project.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from omop_gpt import warehouse
from omop_gpt.step import InputError


def source_tables() -> dict[str, list[str]]:
    """Names of the OMOP tables that encode reads, each with its other spellings."""
    import yaml

    path = "models/staging/omop/_omop__sources.yml"
    content = yaml.safe_load((warehouse.project_folder() / path).read_text())
    return {
        table["name"]: table.get("config", {}).get("meta", {}).get("also_named", [])
        for table in content["sources"][0]["tables"]
    }


def source_files(input_folder: str) -> dict[str, list[Path]]:
    """List the data files of each OMOP table in a folder.

    Raises InputError for a missing folder, a missing person table, a broken file. How a
    table is read, and what else is wrong with it, create_source_views() knows.
    """
    folder = Path(input_folder)
    if folder.suffix == ".duckdb" and folder.is_file():
        check_database(folder)
        return {"person": [folder]}
    if not folder.is_dir():
        raise InputError(f"--input_folder {folder} is not a folder: check the path.")
    found: dict[str, list[Path]] = {}
    for name, other_names in source_tables().items():
        files = [
            file
            for entry in sorted(folder.iterdir())
            if entry.name.split(".")[0].lower() in (name, *other_names)
            for file in data_files(entry)
        ]
        if files:
            found[name] = files
    if "person" not in found:
        raise InputError(
            f"{folder} has no person table: put Parquet files in {folder}/person/, "
            "or name the folder that holds the OMOP tables."
        )
    for name, files in found.items():
        for file in files:
            check_file(name, file)
    return found


def check_contents(files: Mapping[str, list[Path]]) -> None:
    """Raise InputError for the first Parquet file with a damaged page."""
    for name, group in files.items():
        for file in group:
            check_file(name, file, whole=True)


def data_files(entry: Path) -> list[Path]:
    """List the files of one table: itself, or those of a folder and its partitions."""
    if entry.name.startswith((".", "_")):
        return []
    if entry.is_dir():
        return [file for child in sorted(entry.iterdir()) for file in data_files(child)]
    name = entry.name.lower().removesuffix(".gz")
    return [entry] if name.endswith((".parquet", ".csv", ".tsv")) else []


def check_database(file: Path) -> None:
    """Raise InputError if DuckDB cannot open a file: it is none, or is locked."""
    import duckdb

    try:
        duckdb.connect(str(file), read_only=True).close()
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{file} cannot be opened as a DuckDB file ({reason}): name another file, "
            "or close the program that writes it."
        ) from None


def check_file(table: str, file: Path, *, whole: bool = False) -> None:
    """Raise InputError if a Parquet file is none, or was cut short.

    `whole`: also if any of its pages is damaged, which takes as long as to read it.
    """
    if file.suffix.lower() != ".parquet":
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            for group in range(parquet.num_row_groups if whole else 0):
                parquet.read_row_group(group)
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"table {table}: {file} is not a whole Parquet file ({reason}): "
            "write it again, or remove it."
        ) from None
