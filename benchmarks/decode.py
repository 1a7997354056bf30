"""Time decode beside CEHR-GPT's converter and builders, on encoded real patients.

    python benchmarks/decode.py --source OMOP --output_folder B --peer_python P

Both encode the same tables first, each with its own step; the way back is timed.
P is the Python of an environment with cehrgpt (docs/cehr-gpt.md says how to make one);
its builders need Java 17. Quote ratios of one run: machines differ, and their days do.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
from encode import OURS, encode, measure, peer_environment, peer_sequences, peer_source

# its workers race to create these, and one then dies
PEER_FOLDERS = (
    "person", "visit_occurrence", "condition_occurrence", "procedure_occurrence",
    "drug_exposure", "death", "measurement",
)  # fmt: skip


def decode(
    root: Path, cores: int, memory: str, check_quality: bool
) -> dict[str, float]:
    """Time our decode of all sequences in `root`/encoded, and count what it made."""
    output = root / "ours"
    shutil.rmtree(output, ignore_errors=True)
    (root / "ours.duckdb").unlink(missing_ok=True)
    row = measure(
        [
            *OURS[:-1], "decode",
            "--patient_sequence_folder", str(root / "encoded" / "patient_sequence"),
            "--omop_folder", str(output), "--source_omop_folder", str(root / "source"),
            "--warehouse", str(root / "ours.duckdb"), "--cpu_cores", str(cores),
            "--memory", memory, "--check_quality", str(check_quality).lower(),
        ],
        root / "ours.log",
    )  # fmt: skip
    return with_rate(row, output)


def peer_decode(
    root: Path, python: str, cores: int, environment: dict[str, str]
) -> dict[str, float]:
    """Time its converter, its observation periods and its condition eras."""
    output = root / "peer_omop"
    shutil.rmtree(output, ignore_errors=True)
    for name in PEER_FOLDERS:
        (output / name).mkdir(parents=True)
    steps = [
        measure(
            [
                python, "-m", "cehrgpt.generation.omop_converter_batch",
                "--patient_sequence_path", str(root / "peer" / "patient_sequence"),
                "--output_folder", str(output), "--buffer_size", "1280",
                "--concept_path", str(root / "source" / "concept"),
                "--cpu_cores", str(cores), "--use_original_person_id",
            ],
            root / "peer_converter.log",
            environment,
        )
    ]  # fmt: skip
    for builder in ("observation_period", "condition_era"):
        steps.append(
            measure(
                [
                    python, "-m", f"cehrgpt.omop.{builder}",
                    "--input_folder", str(output), "--output_folder", str(output),
                    "--domain_table_list",
                    "condition_occurrence drug_exposure procedure_occurrence",
                ],
                root / f"peer_{builder}.log",
                environment,
            )
        )  # fmt: skip
    row = {
        "seconds": round(sum(step["seconds"] for step in steps), 1),
        "peak_gb": max(step["peak_gb"] for step in steps),
        "cpu_seconds": round(sum(step["cpu_seconds"] for step in steps), 1),
        "of_them_converter": steps[0]["seconds"],
    }
    return with_rate(row, output)


def with_rate(row: dict[str, float], omop: Path) -> dict[str, float]:
    """Add the persons and rows of the tables in a folder, and persons per second."""
    rows = {
        folder.name: sum(
            pq.read_metadata(file).num_rows for file in folder.glob("*.parquet")
        )
        for folder in omop.iterdir()
        if folder.is_dir()
    }
    return {
        **row,
        "persons": rows["person"],
        "tables": sum(count > 0 for count in rows.values()),
        "rows": sum(rows.values()),
        "persons_per_second": round(rows["person"] / row["seconds"], 1),
    }


def main() -> None:
    """Read the flags, and time both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True)
    parser.add_argument("--output_folder", required=True)
    parser.add_argument("--peer_python", help="without it, ours alone")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--memory", default="4GB")
    parser.add_argument("--peer_memory", default="6g")
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    root = Path(arguments.output_folder)
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "source").exists():
        peer_source(Path(arguments.source), root / "source")
    if not (root / "encoded").exists():
        encode(root / "source", root / "encoded", arguments.cores, arguments.memory)
    rates = {}
    for check_quality in (True, False):
        for _ in range(arguments.repeats):
            row = decode(root, arguments.cores, arguments.memory, check_quality)
            name = "ours with quality checks" if check_quality else "ours"
            rates[name] = max(rates.get(name, 0), row["persons_per_second"])
            print(name, json.dumps(row), flush=True)
    if arguments.peer_python:
        environment = peer_environment(
            arguments.peer_python, arguments.cores, arguments.peer_memory
        )
        if not (root / "peer").exists():
            peer_sequences(root, arguments.peer_python, environment)
        row = peer_decode(root, arguments.peer_python, arguments.cores, environment)
        print("peer", json.dumps(row))
        for name, rate in rates.items():
            print(f"{name}: {rate / row['persons_per_second']:.1f} times the persons/s")


if __name__ == "__main__":
    main()
