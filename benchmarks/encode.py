"""Time encode: at growing sizes, and beside CEHR-GPT's step 1 on the same tables.

    python benchmarks/encode.py sizes --output_folder B --sizes 1000 10000 100000
    python benchmarks/encode.py beside --source OMOP --output_folder B --peer_python P

P is the Python of an environment with cehrgpt (docs/cehr-gpt.md says how to make one);
its step 1 needs Java 17. Quote ratios of one run: machines differ, and their days do.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

PEER_TABLES = (
    "person", "visit_occurrence", "condition_occurrence", "procedure_occurrence",
    "drug_exposure", "death", "concept",
)  # fmt: skip
OURS = [sys.executable, "-m", "omop_gpt", "encode"]


def measure(
    command: list[str], log: Path, environment: dict[str, str] | None = None
) -> dict[str, float]:
    """Run a command; return its seconds, and peak GB and CPU seconds of its tree.

    Memory is the sum over its processes, sampled once a second; pages that small ones
    share are counted once (asking it of a large one would hold it up). Raises
    CalledProcessError where the command fails; what it prints is in `log`.
    """
    started = time.time()
    peak, cpu = 0, {}
    tick = os.sysconf("SC_CLK_TCK")
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
        while process.poll() is None:
            resident = 0
            for pid in tree(process.pid):
                try:
                    stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1]
                    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                    size = pages * os.sysconf("SC_PAGE_SIZE")
                    if size < 5e8:
                        sizes = Path(f"/proc/{pid}/smaps_rollup").read_text()
                        size = 1024 * int(re.search(r"Pss: +(\d+)", sizes)[1])
                except OSError:  # it has ended
                    continue
                resident += size
                cpu[pid] = sum(map(int, stat.split()[11:13])) / tick
            peak = max(peak, resident)
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return {
        "seconds": round(time.time() - started, 1),
        "peak_gb": round(peak / 1e9, 2),
        "cpu_seconds": round(sum(cpu.values()), 1),
    }


def tree(root: int) -> list[int]:
    """List a process and all below it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rsplit(")", 1)[1]
            except OSError:
                continue
            parents.setdefault(int(stat.split()[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += parents.get(pid, [])
    return found


def size_of(folder: Path) -> float:
    """Gigabytes of all files in a folder."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e9


def encode(source: Path, output: Path, cores: int, memory: str) -> dict[str, float]:
    """Time our encode, and count what it made."""
    shutil.rmtree(output, ignore_errors=True)
    command = [*OURS, "--input_folder", str(source), "--output_folder", str(output)]
    command += ["--cores", str(cores), "--memory", memory]
    row = measure(command, output.with_suffix(".log"))
    manifest = json.loads((output / "patient_sequence/manifest.json").read_text())
    rows = manifest["result"]["rows"]
    return {
        **row,
        "disk_gb": round(size_of(output), 2),
        **rows,
        "persons_per_second": round(rows["persons"] / row["seconds"], 1),
    }


def sizes(arguments: argparse.Namespace) -> None:
    """Simulate patients and encode them, at each size; write a table and a plot."""
    root = Path(arguments.output_folder)
    root.mkdir(parents=True, exist_ok=True)
    table = []
    for count in arguments.sizes:
        source = root / f"source_{count}"
        if not source.exists():
            subprocess.run(
                [
                    *OURS[:-1], "simulate", "--output_folder", str(source),
                    "--num_of_patients", str(count),
                ],
                check=True,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
        row = encode(source, root / f"out_{count}", arguments.cores, arguments.memory)
        table.append({"source_gb": round(size_of(source), 2), **row})
        print(json.dumps(table[-1]), flush=True)
        shutil.rmtree(root / f"out_{count}")
    (root / "sizes.json").write_text(json.dumps(table, indent=2) + "\n")
    plot(table, root / "encode_sizes.svg")


def plot(table: list[dict[str, float]], path: Path) -> None:
    """Draw seconds per 1,000 patients and peak memory over the number of patients."""
    import matplotlib.pyplot as plt

    persons = [row["persons"] for row in table]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(persons, [1000 * row["seconds"] / row["persons"] for row in table], "o-")
    left.set(title="seconds per 1,000 patients", yscale="log")
    right.plot(persons, [row["peak_gb"] for row in table], "o-", label="memory")
    right.plot(persons, [row["disk_gb"] for row in table], "s--", label="disk, result")
    right.set(title="gigabytes", yscale="log")
    right.legend()
    for axis in (left, right):
        axis.set(xscale="log", xlabel="patients")
        axis.grid(alpha=0.3)
    plt.rcParams["svg.hashsalt"] = "omop-gpt"
    figure.savefig(path)


def peer_source(source: Path, folder: Path) -> None:
    """Copy the tables that both read, with the vocabulary rows that step 1 needs.

    It wants a concept for each id, and concept_ancestor and concept_relationship: made
    up (each concept its own ancestor) where the source has none.
    """
    import duckdb

    con = duckdb.connect()
    for name in PEER_TABLES:
        (folder / name).mkdir(parents=True)
        con.execute(f"create view {name} as from '{source}/{name}/*.parquet'")
        if name != "concept":
            con.execute(f"copy {name} to '{folder}/{name}/part-0.parquet'")
    used = " union ".join(
        f"select {prefix}_concept_id as id, '{domain}' as domain from {table}"
        for table, prefix, domain in (
            ("visit_occurrence", "visit", "Visit"),
            ("condition_occurrence", "condition", "Condition"),
            ("procedure_occurrence", "procedure", "Procedure"),
            ("drug_exposure", "drug", "Drug"),
        )
    )
    con.execute(
        f"""
        copy (
            from concept
            union all by name
            select
                id as concept_id, 'concept ' || id as concept_name,
                domain as domain_id, 'None' as vocabulary_id,
                'Undefined' as concept_class_id, 'S' as standard_concept,
                id::varchar as concept_code, date '1970-01-01' as valid_start_date,
                date '2099-12-31' as valid_end_date
            from ({used})
            where id <> 0 and id not in (select concept_id from concept)
        ) to '{folder}/concept/part-0.parquet'
        """
    )
    made_up = {
        "concept_ancestor": "concept_id as ancestor_concept_id, "
        "concept_id as descendant_concept_id, 0 as min_levels_of_separation, "
        "0 as max_levels_of_separation",
        "concept_relationship": "concept_id as concept_id_1, "
        "concept_id as concept_id_2, 'Maps to' as relationship_id, "
        "date '1970-01-01' as valid_start_date, "
        "date '2099-12-31' as valid_end_date, '' as invalid_reason",
    }
    for name, columns in made_up.items():
        (folder / name).mkdir()
        con.execute(
            f"copy (select {columns} from '{folder}/concept/part-0.parquet') "
            f"to '{folder}/{name}/part-0.parquet'"
        )


def peer_environment(python: str, cores: int, memory: str) -> dict[str, str]:
    """Name the settings under which its Spark steps run here."""
    return {
        "PYSPARK_PYTHON": python,
        "PYSPARK_DRIVER_PYTHON": python,
        "PYSPARK_SUBMIT_ARGS": (
            f"--master local[{cores}] --driver-memory {memory} "
            "--conf spark.ui.enabled=false --conf spark.ui.showConsoleProgress=false "
            "pyspark-shell"
        ),
    }


def peer_sequences(
    root: Path, python: str, environment: dict[str, str]
) -> list[dict[str, float]]:
    """Time its step 1 on `root`/source: concept list, sequences in `root`/peer."""
    source, peer = root / "source", root / "peer"
    shutil.rmtree(peer, ignore_errors=True)
    return [
        measure(
            [
                python, "-m", "cehrbert_data.apps.generate_included_concept_list",
                "-i", str(source), "-o", str(source), "--min_num_of_patients", "5",
            ],
            root / "peer_concepts.log",
            environment,
        ),
        measure(
            [
                python, "-m", "cehrbert_data.apps.generate_training_data",
                "--input_folder", str(source), "--output_folder", str(peer),
                "--domain_table_list", "condition_occurrence", "procedure_occurrence",
                "drug_exposure", "-d", "1985-01-01", "--att_type", "day",
                "--inpatient_att_type", "day", "-iv", "-ip", "--include_concept_list",
                "--include_death", "--gpt_patient_sequence",
            ],
            root / "peer_sequences.log",
            environment,
        ),
    ]  # fmt: skip


def beside(arguments: argparse.Namespace) -> None:
    """Encode one source with both, in turn."""
    root = Path(arguments.output_folder)
    root.mkdir(parents=True, exist_ok=True)
    source = root / "source"
    if not source.exists():
        peer_source(Path(arguments.source), source)
    ours = [
        encode(source, root / "ours", arguments.cores, arguments.memory)
        for _ in range(arguments.repeats)
    ]
    for row in ours:
        print("ours", json.dumps(row), flush=True)
    python = arguments.peer_python
    first, second = peer_sequences(
        root,
        python,
        peer_environment(python, arguments.cores, arguments.peer_memory),
    )
    seconds = first["seconds"] + second["seconds"]
    theirs = {
        "seconds": round(seconds, 1),
        "peak_gb": max(first["peak_gb"], second["peak_gb"]),
        "cpu_seconds": round(first["cpu_seconds"] + second["cpu_seconds"], 1),
        "persons_per_second": round(ours[0]["persons"] / seconds, 1),
    }
    print("peer", json.dumps(theirs))
    best = min(row["seconds"] for row in ours)
    print(f"ratio of patients per second: {seconds / best:.1f}")


def main() -> None:
    """Read the flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parsers = parser.add_subparsers(required=True)
    for name, function in (("sizes", sizes), ("beside", beside)):
        one = parsers.add_parser(name, help=function.__doc__)
        one.set_defaults(function=function)
        one.add_argument("--output_folder", required=True)
        one.add_argument("--cores", type=int, default=2)
        one.add_argument("--memory", default="4GB")
        if name == "sizes":
            one.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000])
        else:
            one.add_argument("--source", required=True)
            one.add_argument("--peer_python", required=True)
            one.add_argument("--peer_memory", default="6g")
            one.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    main()
