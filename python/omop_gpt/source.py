"""Find the OMOP tables of an input folder, and refuse broken files before the work.

Knows files and their formats; what the columns mean is in the dbt project.
"""

from __future__ import annotations

from pathlib import Path

from omop_gpt import warehouse
from omop_gpt.step import InputError


def source_tables() -> list[str]:
    """Names of the OMOP tables that encode reads, as the dbt sources list them."""
    import yaml

    path = "models/staging/omop/_omop__sources.yml"
    content = yaml.safe_load((warehouse.project_folder() / path).read_text())
    return [table["name"] for table in content["sources"][0]["tables"]]


def source_files(input_folder: str) -> dict[str, list[Path]]:
    """List the data files of each OMOP table in a folder.

    Raises InputError for a missing folder, a missing person table, a broken file.
    """
    folder = Path(input_folder)
    if folder.suffix == ".duckdb" and folder.is_file():
        return {"person": [folder]}
    if not folder.is_dir():
        raise InputError(f"--input_folder {folder} is not a folder: check the path.")
    found: dict[str, list[Path]] = {}
    for name in source_tables():
        files = [
            file
            for entry in sorted(folder.iterdir())
            if entry.name.split(".")[0].lower() == name
            for file in (sorted(entry.iterdir()) if entry.is_dir() else [entry])
            if file.suffix.lower() in (".parquet", ".csv", ".tsv")
            and not file.name.startswith((".", "_"))
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


def check_file(table: str, file: Path) -> None:
    """Raise InputError if a Parquet file is none, or was cut short."""
    if file.suffix.lower() != ".parquet":
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.read_metadata(file)
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"table {table}: {file} is not a whole Parquet file ({reason}): "
            "write it again, or remove it."
        ) from None
