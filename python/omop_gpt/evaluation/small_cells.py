"""The rule of small cells: what few real persons make is not told.

Metrics and pictures need exact marts. When they are made, schema `evaluation` loses the
rows that fewer than SMALL_CELL real persons, visits or values make, so that it can be
read by all who may read the report. Exact rows stay in schema evaluation_private.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from omop_gpt.evaluation.cohorts import SYNTHETIC

if TYPE_CHECKING:
    import duckdb

SMALL_CELL = 11
# what a row of each mart must not be few of, besides none
COUNTS = {
    "acute_conditions": ("occurrences",),
    "age_sex_pyramid": ("persons",),
    "calendar_trend": ("visits", "year_visits"),
    "clinical_violations": ("persons_violating", "persons"),
    "concept_ages": ("persons",),
    "demographics": ("persons",),
    "gaps": ("gaps",),
    "histograms": ("frequency",),
    "history_lengths": ("persons",),
    "incident_conditions": ("person_count",),
    "lag_repeats": ("pairs",),
    "onset_ages": ("persons",),
    "onset_incidence": ("onsets",),
    "pathways": ("persons",),
    "prevalence": ("persons", "events"),
    "prevalence_by_stratum": ("persons", "events", "stratum_persons"),
    "seasonality": ("occurrences",),
    "survival": ("at_risk",),
    "task_prevalence": ("person_count",),
    "temporal_concepts": ("persons",),
    "time_checks": ("rows_violated", "denominator"),
    "treated_conditions": ("persons",),
    "value_means": ("value_count",),
    "value_missing": ("row_count", "value_count", "row_count - value_count"),
    # so many values lie beyond each end
    "value_quantiles": (
        "cast(floor(value_count * least(quantile, 1 - quantile)) as bigint)",
    ),
    "visit_domains": ("events",),
    "visit_transitions": ("transitions",),
    "visit_types": ("visits",),
}


def leave_out_small_cells(con: duckdb.DuckDBPyConnection) -> None:
    """Delete rows of real cohorts, and of anchors made of them, that are small cells.

    Of survival, which falls by single deaths, only their number goes.
    """
    with_cohort = {
        name
        for (name,) in con.execute(
            "select table_name from information_schema.columns "
            "where table_schema = 'evaluation' and column_name = 'cohort'"
        ).fetchall()
    }
    few = f"between 1 and {SMALL_CELL - 1}"
    for mart, counts in COUNTS.items():
        is_small = " or ".join(f"{count} {few}" for count in counts)
        if mart == "value_quantiles":  # the end of all values is one person's, too
            is_small += f" or {counts[0]} = 0"
        if mart in with_cohort:
            is_small = f"cohort not like '{SYNTHETIC}%' and ({is_small})"
        con.execute(f"delete from evaluation.{mart} where {is_small}")
    con.execute(
        "update evaluation.survival set deaths = null "
        f"where deaths {few} and cohort not like '{SYNTHETIC}%'"
    )
