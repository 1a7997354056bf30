"""What every step shares: clear errors, whole folders, manifests.

Knows nothing of OMOP, tokens or models.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
# in a folder of Parquet files: Spark and pyarrow pass over names that start so
HIDDEN_MANIFEST = "_manifest.json"
TAIL_BYTES = 65_536  # a Parquet file's footer, with its statistics, lies here


class InputError(Exception):
    """The user's input is at fault: one line that says what, where and the mend."""


class MachineError(Exception):
    """The machine is at fault: one line that says what, where and the mend."""


# what DuckDB, Spark and Python say of a machine, and what mends it; a full disk comes
# first, for DuckDB has it that memory ran out where it cannot spill
FAULTS = (
    (
        "no space left on device|file too large|disk quota|max_temp_directory_size",
        MachineError,
        "free some of the disk, or name a folder on a larger one.",
    ),
    (
        r"\[errno (13|17|20|30)\]|permission denied|read-only file system",
        InputError,
        "name a folder that can be written to.",
    ),
    (
        "out of ?memory|cannot allocate memory",
        MachineError,
        "give more with --memory, or fewer --cores.",
    ),
    (
        "java_gateway_exited",
        MachineError,
        "Spark does not start; Java says above why. Look at JAVA_HOME and "
        "SPARK_DRIVER_MEMORY, or ask `omop-gpt doctor`.",
    ),
    (
        "answer from java side is empty|connection refused|connection reset"
        "|error while (sending|receiving)|trying to connect to the java server"
        # with nothing after it: what Java itself says follows a full stop
        r"|error occurred while calling [\w.]+\w$",
        MachineError,
        "Spark was stopped, maybe for want of memory: free some, and run it again.",
    ),
)


def told_plainly(error: object, where: str) -> InputError | MachineError | None:
    """Say in one line what is known of a failure, and its mend; None: nothing is."""
    for pattern, kind, mend in FAULTS:
        for line in str(error).splitlines():
            if re.search(pattern, line, re.IGNORECASE):
                return kind(f"{where}: {line.strip().rstrip('.')}: {mend}")
    return None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; raises InputError where another has it.

    The lock is on the folder itself: it ends with the process, and leaves no file.
    """
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another run writes to {folder}: wait for its end, "
                "or name another folder."
            ) from None
        except OSError:
            pass  # some network drives have no locks
        yield
    finally:
        os.close(handle)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yield a folder beside `path` that becomes `path` only if all went well.

    Raises InputError if `path` is there already and holds something.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} is there already: name a new folder, or remove it.")
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if path.exists():
        path.rmdir()
    partial.rename(path)


def files_fingerprint(files: Iterable[Path], root: Path) -> str:
    """Hash names, sizes and last bytes of files: cheap, and moves with the content."""
    digest = hashlib.sha256()
    for file in sorted(files):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(root)}\0{size}\0".encode())
        with file.open("rb") as handle:
            handle.seek(max(0, size - TAIL_BYTES))
            digest.update(handle.read())
    return digest.hexdigest()


def folder_fingerprint(folder: str | Path, pattern: str = "**/*.parquet") -> str:
    """Hash the files of a folder that match a pattern."""
    folder = Path(folder)
    return files_fingerprint(
        (file for file in folder.glob(pattern) if file.is_file()), folder
    )


def cache_folder() -> Path:
    """Where the user keeps what can be made again: no data."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "omop-gpt"


def versions() -> dict[str, str]:
    """Versions of what a result depends on, as far as it is installed."""
    names = (
        "omop-gpt duckdb dbt-core dbt-adapters dbt-duckdb pyspark torch transformers "
        "pyarrow numpy"
    )
    found = {"python": platform.python_version()}
    for name in names.split():
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """Return a step's manifest, or None where the step is not done."""
    for name in (MANIFEST, HIDDEN_MANIFEST):
        path = Path(folder) / name
        if path.is_file():
            return json.loads(path.read_text())
    return None


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    partial.replace(path)


def write_manifest(
    folder: str | Path,
    *,
    step: str,
    settings: Mapping[str, Any],
    inputs: str,
    started: float,
    result: Mapping[str, Any],
) -> None:
    """Say in `folder` what made it; its presence means that the step is done."""
    content = {
        "step": step,
        "settings": dict(settings),
        "inputs": inputs,
        "seconds": round(time.time() - started, 1),
        "versions": versions(),
        "result": dict(result),
    }
    holds_data = any(Path(folder).glob("*.parquet"))
    write_json(Path(folder) / (HIDDEN_MANIFEST if holds_data else MANIFEST), content)


def manifest_of(
    folder: str | Path, *, step: str, settings: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the manifest of a step that was done with these settings, else None.

    Raises InputError if it was done in `folder` with others: nothing is mixed.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    wanted = json.loads(json.dumps(dict(settings)))
    for name in sorted(manifest["settings"].keys() | wanted.keys()):
        before, now = manifest["settings"].get(name), wanted.get(name)
        if before != now:
            raise InputError(
                f"{folder} holds a {step} made with --{name} {before}, not {now}: "
                "name a new output folder, or remove this one."
            )
    return manifest


def is_done(
    folder: str | Path, *, step: str, settings: Mapping[str, Any], inputs: str
) -> bool:
    """Say whether the step was done in `folder` with these settings and inputs.

    Raises InputError if it was done there with others: nothing is mixed.
    """
    manifest = manifest_of(folder, step=step, settings=settings)
    if manifest is None:
        return False
    if manifest["inputs"] != inputs:
        raise InputError(
            f"{folder} holds a {step} of another input: "
            "name a new output folder, or remove this one."
        )
    return True
