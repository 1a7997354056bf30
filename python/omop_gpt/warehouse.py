"""Run the dbt half from Python: the project, its profile, its errors.

Imports dbt only when a run starts: training and sampling need none of it.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from omop_gpt.step import InputError, cache_folder, told_plainly, versions

# variables that change nothing of a parsed project but by whether they are set
PLACES = ("_folder", "_warehouse", "made_by", "version", "cdm_release_date")
CACHED = 20  # parsed projects that the user's cache keeps, of some megabytes each


def project_folder() -> Path:
    """Return the dbt project's folder: inside an installed package, or the checkout."""
    installed = Path(__file__).parent / "dbt_project"
    checkout = Path(__file__).parents[2]
    for folder in (installed, checkout):
        if (folder / "dbt_project.yml").is_file():
            return folder
    raise RuntimeError("the dbt project is missing: reinstall omop-gpt.")


def revision() -> str:
    """Return the git revision of a checkout; nothing for an installed package."""
    folder = project_folder()
    if not (folder / ".git").exists():
        return ""
    with suppress(OSError, subprocess.CalledProcessError):
        asked = ["git", "-C", str(folder), "rev-parse", "HEAD"]
        return subprocess.run(
            asked, capture_output=True, text=True, check=True
        ).stdout.strip()
    return ""


def parsed_project(variables: Mapping[str, Any], warehouse: Path) -> Path:
    """Where the user's cache has the project as dbt parses it for these variables.

    Parsing takes dbt longer than the models of a small source. It does not depend on
    where folders are, but on whether they are given.
    """
    folder = project_folder()
    files = [*folder.glob("*.yml")]
    for name in ("models", "macros", "seeds", "tests"):
        files += (file for file in (folder / name).rglob("*") if file.is_file())
    options = {
        name: bool(value) if name.endswith(PLACES) else value
        for name, value in variables.items()
    }
    # what was parsed holds the macros of dbt and its adapter, too
    asked = [versions(), warehouse.stem, options]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    for file in sorted(files):
        digest.update(str(file).encode() + file.read_bytes())
    return cache_folder() / f"{digest.hexdigest()[:32]}.msgpack"


def keep_parsed(made: Path, parsed: Path) -> None:
    """Put what dbt parsed into the cache, which keeps the last few."""
    with suppress(OSError):  # a run does not need it
        parsed.parent.mkdir(parents=True, exist_ok=True)
        beside = parsed.with_suffix(f".{os.getpid()}")
        shutil.copyfile(made, beside)
        beside.replace(parsed)
        kept = sorted(parsed.parent.glob("*.msgpack"), key=lambda f: f.stat().st_mtime)
        for old in kept[:-CACHED]:
            old.unlink()


def teller(log: Path) -> Callable[[Any], None]:
    """Return what prints dbt's messages, but for details, and keeps them in `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)

    def tell(message: Any) -> None:
        if message.info.level == "debug":
            return
        line = f"{time.strftime('%H:%M:%S')}  {message.info.msg}"
        print(line, flush=True)
        with log.open("a") as lines:
            lines.write(line + "\n")

    return tell


def build(
    selector: str,
    *,
    variables: Mapping[str, Any],
    warehouse: Path,
    work_folder: Path,
    cores: int,
    memory: str,
    scratch: Path | None = None,
) -> None:
    """Run `dbt build --selector <selector>` on a DuckDB warehouse.

    Rows on the way are in the file `scratch`; None: in memory, and what it does not
    hold in a folder of `work_folder`.

    Raises InputError where the data cannot be read as the model needs it, MachineError
    where disk or memory end, else RuntimeError, with the model, the test and what it
    found.
    """
    gc.disable()  # what dbt loads, a million objects, stays to the end
    from dbt.adapters.duckdb.connections import DuckDBConnectionManager
    from dbt.cli.main import dbtRunner
    from dbt.contracts.graph.manifest import Manifest

    os.environ.update(
        {
            "OMOP_GPT_TARGET": "duckdb",
            "OMOP_GPT_WAREHOUSE": str(warehouse),
            "OMOP_GPT_SPILL": str(work_folder / "spill"),
            "OMOP_GPT_SCRATCH": str(scratch or ":memory:"),
            "OMOP_GPT_ROWS": str(work_folder / "rows"),
            "OMOP_GPT_CORES": str(cores),
            # small models and tests run beside a large one
            "OMOP_GPT_DBT_THREADS": str(min(cores, 4)),
            "OMOP_GPT_MEMORY": memory,
            "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
        }
    )
    folder = project_folder()
    arguments = ["build", "--selector", selector, "--vars", json.dumps(dict(variables))]
    arguments += ["--project-dir", str(folder), "--profiles-dir", str(folder)]
    arguments += ["--target-path", str(work_folder / "target")]
    arguments += ["--log-path", str(work_folder / "logs")]
    # dbt puts each of its details into words, twice, before it looks who wants them
    arguments += ["--log-level", "none", "--log-level-file", "none"]
    arguments += ["--exclude-resource-type", "unit_test"]
    # a warehouse that an older version made may have seeds of another shape
    arguments += ["--full-refresh"]
    parsed = parsed_project(variables, warehouse)
    manifest = None
    with suppress(Exception):  # not there, or damaged: dbt parses the project again
        manifest = Manifest.from_msgpack(parsed.read_bytes())
        manifest.build_flat_graph()
    gc.freeze()  # and is not looked through again and again
    gc.enable()
    if manifest is not None:
        arguments += ["--no-write-json"]  # what it parsed need not be kept again
    log = work_folder / "logs" / "dbt.log"
    try:
        outcome = dbtRunner(manifest, [teller(log)]).invoke(arguments)
    finally:
        gc.unfreeze()
        # the file must be free for the next step, and its memory too
        DuckDBConnectionManager.close_all_connections()
        shutil.rmtree(work_folder / "rows", ignore_errors=True)
    if manifest is None:
        keep_parsed(work_folder / "target" / "partial_parse.msgpack", parsed)
    if outcome.success:
        return
    if isinstance(outcome.exception, KeyboardInterrupt):
        raise outcome.exception
    if str(getattr(outcome.exception, "msg", "")).startswith("cannot read: "):
        raise InputError(
            outcome.exception.msg
        )  # the macro refuse() said it in one line
    for result in getattr(outcome.result, "results", None) or ():
        if result.status in ("error", "fail"):
            message = " ".join((result.message or "").split())
            node = result.node
            told = told_plainly(result.message, f"dbt {node.resource_type} {node.name}")
            if told:
                raise told
            if node.resource_type == "model" and "Conversion Error" in message:
                raise InputError(f"{node.name}: {message}")
            raise RuntimeError(
                f"dbt {node.resource_type} {node.name}: {message} "
                f"({node.original_file_path}; all of it in {log})"
            )
    told = told_plainly(outcome.exception, "dbt")
    if told:
        raise told
    raise RuntimeError(f"dbt failed before the run: {outcome.exception} (log: {log})")


def read_files_of(folder: Path, warehouse: Path, schema: str) -> None:
    """Let the views of a schema read the tables' files in `folder`, where they lie now.

    Views of no files stay as they are; so does a warehouse that is not there.
    """
    import duckdb

    if not warehouse.is_file():
        return
    with duckdb.connect(str(warehouse), read_only=True) as con:
        views = con.execute(
            "select view_name, sql from duckdb_views() where schema_name = ? "
            "and contains(sql, 'read_parquet(')",
            [schema],
        ).fetchall()
    quoted = str(folder).replace("'", "''")
    files = {name: f"'{quoted}/{name}/*.parquet'" for name, _ in views}
    moved = [name for name, sql in views if files[name] not in sql]
    if moved:
        with duckdb.connect(str(warehouse)) as con:
            for name in moved:
                con.execute(
                    f"create or replace view {schema}.{name} as "
                    f"select * from read_parquet({files[name]}, "
                    "hive_partitioning = false)"
                )
