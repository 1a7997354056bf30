"""Put evaluate to the test: all anchors, and what each gate says of them.

    python benchmarks/evaluate.py --output_folder B --num_of_patients 20000

Simulated patients are encoded; others of the same process, of another seed, pose as
synthetic: a generator without a fault. Prints a table of gates and cohorts. With
--real_folder and --synthetic_folder (and --model_folder) a run of your own is judged in
their place.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

OURS = [sys.executable, "-m", "omop_gpt"]
SIGNS = {"failed": " ✘", "underpowered": " ·", "passed": "", "undefined": ""}


def run(step: str, **flags: str) -> float:
    """Run a step; returns its seconds."""
    started = time.time()
    command = [*OURS, step]
    for name, value in flags.items():
        command += [f"--{name}", value]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.time() - started


def table(report: dict) -> str:
    """Return the gates as Markdown: a column for each cohort."""
    cohorts = list(dict.fromkeys(row["cohort"] for row in report["gates"]))
    lines = [
        f"| gate | bound | {' | '.join(cohorts)} |",
        f"|---|---|{'---|' * len(cohorts)}",
    ]
    for order in sorted({row["gate_order"] for row in report["gates"]}):
        rows = {r["cohort"]: r for r in report["gates"] if r["gate_order"] == order}
        one = rows[cohorts[0]]
        if all(row["status"] == "not_run" for row in rows.values()):
            continue
        cells = [
            "–" if rows[name]["value"] is None
            else f"{rows[name]['value']:.3g}{SIGNS.get(rows[name]['status'], '')}"
            for name in cohorts
        ]  # fmt: skip
        stratum = "" if one["stratum"] == "all" else f", {one['stratum']}"
        sign = "≤" if one["direction"] == "at_most" else "≥"
        lines.append(
            f"| {one['metric']}{stratum} ({one['level']}) | {sign} {one['limit']:.3g} "
            f"| {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Read the flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_folder", required=True)
    parser.add_argument("--num_of_patients", type=int, default=20_000)
    parser.add_argument("--profile", default="full")
    parser.add_argument("--real_folder")
    parser.add_argument("--synthetic_folder")
    parser.add_argument("--model_folder", default="")
    arguments = parser.parse_args()
    root = Path(arguments.output_folder)
    root.mkdir(parents=True, exist_ok=True)
    real, synthetic = arguments.real_folder, arguments.synthetic_folder
    if not real:
        real, synthetic = str(root / "encoded"), str(root / "others")
        for folder, count, seed in (
            (root / "source", arguments.num_of_patients, "1"),
            (root / "others", arguments.num_of_patients * 7 // 10, "2"),
        ):
            if not folder.exists():
                run(
                    "simulate", output_folder=str(folder), num_of_patients=str(count),
                    seed=seed,
                )  # fmt: skip
        if not (root / "encoded").exists():
            run("encode", input_folder=str(root / "source"), output_folder=real)
    report = root / f"report_{arguments.profile}"
    seconds = run(
        "evaluate", real_folder=real, synthetic_folder=synthetic,
        output_folder=str(report), warehouse=str(root / "warehouse.duckdb"),
        model_folder=arguments.model_folder, profile=arguments.profile,
    )  # fmt: skip
    found = json.loads((report / "metrics.json").read_text())
    print(table(found))
    print(f"\n{arguments.profile}: {seconds:.0f} s; anchors as they must be:")
    print(json.dumps(found["anchors"]))


if __name__ == "__main__":
    main()
