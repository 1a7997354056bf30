"""The data card: what travels with a release, each number with its query."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omop_gpt.evaluation.cohorts import SYNTHETIC
from omop_gpt.step import read_manifest

if TYPE_CHECKING:
    import duckdb

NOT_STATED = "not stated"


def write_data_card(
    con: duckdb.DuckDBPyConnection,
    report: Mapping[str, Any],
    real_folder: Path,
    synthetic_folder: Path,
    folder: Path,
) -> None:
    """Write data_card.md to a folder."""
    encoded = read_manifest(real_folder / "patient_sequence") or {}
    sampled = read_manifest(synthetic_folder.parent / "generated_sequences") or {}
    decoded = read_manifest(synthetic_folder) or {}
    run, verdict = report["run"], report["verdict"]
    lines = [
        "# Data card",
        "",
        "Synthetic patients in the OMOP Common Data Model 5.4, written by a model that",
        "was trained on real ones. That each is written by a model is no proof that it",
        "repeats no real person, or that nothing of one can be learnt: see the gates.",
        "",
        "## What is in it",
        "",
        "| table | rows | query |",
        "|---|---|---|",
        *table_lines(con, synthetic_folder),
        "",
        "## Where it comes from",
        "",
        "| | |",
        "|---|---|",
        f"| model | {run['model'] or NOT_STATED} |",
        f"| vocabulary | {run['vocabulary'] or NOT_STATED} |",
        f"| training data, fingerprint | {encoded.get('inputs') or NOT_STATED} |",
        f"| the source | {report['origin'] or 'patients'}"
        f"{', itself made up' if report['origin'] else ''} |",
        f"| persons of the training | {report['persons'].get('train', 0):,} |",
        f"| filters of the encode | {settings_of(encoded)} |",
        f"| sampling | {settings_of(sampled)} |",
        f"| decoding | {settings_of(decoded)} |",
        "| versions | "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items())
        + " |",
        "| licence | that of the source, whose owner decides on a release |",
        "",
        "## How it was judged",
        "",
        f"Verdict: **{verdict['outcome']}** (run {run['run_id']}, profile "
        f"{run['profile']}; the smallest real cohort has {verdict['least_persons']:,} "
        "persons). Anchors, bounds and pictures are in index.html beside this file.",
        "",
        "| gate | | bound | value | status |",
        "|---|---|---|---|---|",
        *(gate_line(row) for row in report["gates"] if row["cohort"] == SYNTHETIC),
        "",
        "Each value is a row of the warehouse:",
        "",
        "```sql",
        "select metric, stratum, value, ci_low, ci_high, n, threshold, status",
        "from evaluation.eval_scorecard",
        f"where run_id = '{run['run_id']}' and cohort = '{SYNTHETIC}' and level <> '';",
        "```",
        "",
    ]
    (folder / "data_card.md").write_text("\n".join(lines))


def table_lines(con: duckdb.DuckDBPyConnection, folder: Path) -> list[str]:
    """Return a line per table of the release, with its rows."""
    lines = []
    for table in sorted(f.name for f in folder.iterdir() if f.is_dir()):
        if not any((folder / table).glob("*.parquet")):
            continue
        query = f"select count(*) from read_parquet('{table}/*.parquet')"
        pattern = str(folder / table).replace("'", "''")
        (rows,) = con.execute(
            f"select count(*) from read_parquet('{pattern}/*.parquet')"
        ).fetchone()
        lines.append(f"| {table} | {rows:,} | `{query}` |")
    return lines


def settings_of(manifest: Mapping[str, Any]) -> str:
    """Return the settings of a step in one line, those left alone too."""
    settings = manifest.get("settings") or {}
    return ", ".join(f"{k}={v}" for k, v in sorted(settings.items())) or NOT_STATED


def gate_line(row: Mapping[str, Any]) -> str:
    """Return a gate as a line of the table."""
    sign = "≤" if row["direction"] == "at_most" else "≥"
    return (
        f"| {row['title']} | {row['level']} | {sign} {row['limit']:.4g} "
        f"| {row['value']:.4g} | {row['status'].replace('_', ' ')} |"
    )
