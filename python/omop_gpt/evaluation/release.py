"""What the steps before evaluate say of a release, and its source of itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from omop_gpt.evaluation.cohorts import HOLDOUT, SYNTHETIC
from omop_gpt.evaluation.distances import ks
from omop_gpt.step import read_manifest

if TYPE_CHECKING:
    import duckdb

    from omop_gpt.evaluation.results import Results

SEVERITIES = {
    "fatal": "fatal_failures",
    "convention": "convention_failures",
    "characterization": "plausibility_failures",
}
AGREES = 0.001  # rates of violations that are no further apart agree
# how sources that are themselves made up call themselves
MADE_UP = re.compile(r"synth|simulat|made up|no row describes a real person", re.I)


def measure_quality(
    con: duckdb.DuckDBPyConnection, synthetic: Path, results: Results
) -> None:
    """Take over what decode's quality checks found, where they were run.

    Adds fatal_failures, convention_failures and plausibility_failures: checks of OHDSI
    that fail in a row, or are worse than in the source; and, where decode wrote into
    this warehouse, quality_agreement, the share of checks whose rate of violations is
    within AGREES of the source's, and curve quality_differences of the others.
    """
    decoded = read_manifest(synthetic) or {}
    quality = (decoded.get("result") or {}).get("quality") or {}
    for severity, name in SEVERITIES.items():
        if f"{severity}_failed" in quality:
            applied = quality[f"{severity}_applied"]
            results.add(name, SYNTHETIC, quality[f"{severity}_failed"], n=applied)
    schema = f"{(decoded.get('settings') or {}).get('schema')}_quality"
    is_there = con.execute(
        "select count(*) from information_schema.tables "
        "where table_schema = ? and table_name = 'quality_report'",
        [schema],
    ).fetchone()[0]
    if not is_there:
        return
    # which fields are filled at all is a matter of the layout, and counted by decode;
    # the vocabulary is passed through
    rows = con.execute(
        f"""
        select
            concat_ws(' ', check_name, cdm_table, nullif(cdm_field, ''),
                nullif(concept_id, 0)) as check,
            rows_violated / denominator as rate,
            source_rows_violated / source_denominator as source_rate
        from {schema}.quality_report
        where
            denominator > 0 and source_denominator > 0
            and check_name <> 'measureValueCompleteness' and cdm_table <> 'concept'
        order by abs(rate - source_rate) desc, 1
        """
    ).fetchall()
    apart = [row for row in rows if abs(row[1] - row[2]) > AGREES]
    if rows:
        agreement = 1 - len(apart) / len(rows)
        results.add("quality_agreement", SYNTHETIC, agreement, n=len(rows))
    results.draw(
        "quality_differences",
        [
            {"cohort": SYNTHETIC, "check": check, "rate": rate, "source_rate": source}
            for check, rate, source in apart
        ],
    )


def measure_sequences(
    con: duckdb.DuckDBPyConnection, real: Path, synthetic: Path, results: Results
) -> None:
    """Compare how many tokens histories have, and count those that did not end.

    Adds tokens_per_person_ks, and of the sampled sequences the shares that a limit
    ended (ended_by_limit_share) and that are no history (not_histories_share). Look at
    these first: what is cut short is wrong in every other number, too.
    """
    sampled = synthetic.parent / "generated_sequences"
    folders = {
        HOLDOUT: real / "patient_sequence" / HOLDOUT,
        SYNTHETIC: sampled,
    }
    counts = []
    for folder in folders.values():
        if not any(folder.glob("*.parquet")):
            return
        query = "select token_count from read_parquet(?)"
        found = con.execute(query, [f"{folder}/*.parquet"]).fetchnumpy()
        counts.append(np.asarray(found["token_count"]))
    size = len(counts[1])
    both = np.stack(
        [np.bincount(side, minlength=max(map(np.max, counts)) + 1) for side in counts]
    )
    results.add("tokens_per_person_ks", SYNTHETIC, ks(both.astype(float)), n=size)
    result = (read_manifest(sampled) or {}).get("result") or {}
    for name in ("ended_by_limit", "not_histories"):
        if name in result:
            results.add(f"{name}_share", SYNTHETIC, result[name] / size, n=size)


def origin_of(con: duckdb.DuckDBPyConnection, source_folder: str) -> str:
    """Return the name of a source that says itself to be made up, else nothing."""
    pattern = Path(source_folder) / "cdm_source" / "*.parquet"
    if not source_folder or not any(pattern.parent.glob("*.parquet")):
        return ""
    cursor = con.execute("from read_parquet(?) limit 1", [str(pattern)])
    row = cursor.fetchone() or ()
    told = dict(zip((column[0].lower() for column in cursor.description), row))
    text = " ".join(
        str(value)
        for name, value in told.items()
        if name in ("cdm_source_name", "source_description") and value
    )
    return str(told.get("cdm_source_name") or "") if MADE_UP.search(text) else ""
