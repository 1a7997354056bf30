"""Counts of the holdout and of a candidate, side by side, from a mart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from omop_gpt.evaluation.cohorts import HOLDOUT

if TYPE_CHECKING:
    import duckdb


def paired_counts(
    con: duckdb.DuckDBPyConnection,
    candidate: str,
    mart: str,
    key: str,
    weight: str,
    within: str = "'all'",
    least: int = 1,
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield by stratum the keys (n,) and the (2, n) counts of holdout and candidate.

    `key`, `weight`, `within`: SQL over the mart. Strata of which one of them has fewer
    than `least` are not among them; keys are in order, NULL is one as any other.
    """
    query = f"""
        with cells as (
            select
                cast({within} as varchar) as stratum, {key} as key,
                coalesce(sum({weight}) filter (where cohort = $real), 0) as reals,
                coalesce(sum({weight}) filter (where cohort = $ours), 0) as ours
            from evaluation.{mart}
            where cohort in ($real, $ours)
            group by 1, 2
        )
        select
            stratum, list(key order by key), list(reals order by key),
            list(ours order by key)
        from cells
        group by 1
        having least(sum(reals), sum(ours)) >= $least
        order by 1
    """
    asked = {"real": HOLDOUT, "ours": candidate, "least": least}
    rows = con.execute(query, asked).fetchall()
    for stratum, keys, *counts in rows:
        yield stratum, np.array(keys), np.array(counts, float)
