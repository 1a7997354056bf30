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
# what a row of each table must not be few of, besides none: of real cohorts, and of the
# anchors that are made of them
COUNTS = {
    "age_sex_pyramid": ("persons",),
    "calendar_trend": ("visits", "year_visits"),
    "clinical_violations": ("persons_violating", "persons"),
    "concept_ages": ("persons",),
    "demographics": ("persons",),
    "gaps": ("gaps",),
    "histograms": ("frequency",),
    "history_lengths": ("persons",),
    "lag_repeats": ("pairs",),
    "measured_cooccurrence": ("persons",),
    "measured_truth": ("persons",),
    "onset_ages": ("persons",),
    "onset_incidence": ("onsets",),
    "pathways": ("persons",),
    "prevalence": ("persons", "events"),
    "prevalence_by_stratum": ("persons", "events", "stratum_persons"),
    "seasonality": ("occurrences",),
    "survival": ("at_risk",),
    "task_prevalence": ("person_count",),
    "time_checks": ("rows_violated", "denominator"),
    "value_means": ("value_count",),
    "value_missing": ("row_count", "value_count", "row_count - value_count"),
    # so many values lie beyond each end; that of all values is one person's, too
    "value_quantiles": (
        "greatest(floor(value_count * least(quantile, 1 - quantile)), 1)",
    ),
    "visit_domains": ("events",),
    "visit_transitions": ("transitions",),
    "visit_types": ("visits",),
}
# the same of rows that tell of real persons whichever cohort they are of
COUNTS_OF_REAL = {
    "acute_conditions": ("occurrences",),
    "incident_conditions": ("person_count",),
    "measured_cooccurrence": ("persons_holdout",),
    "measured_utility_calibration": ("persons",),
    "measured_zero_shot_calibration": ("persons",),
    "measured_zero_shot_incidence": ("persons",),
    "temporal_concepts": ("persons",),
    "treated_conditions": ("persons",),
}


def leave_out_small_cells(con: duckdb.DuckDBPyConnection) -> None:
    """Delete the rows that are small cells.

    Of survival, which falls by single deaths, only their number goes.
    """
    query = (
        "select table_name from information_schema.tables "
        "where table_schema = 'evaluation'"
    )
    there = {name for (name,) in con.execute(query).fetchall()}
    of_real = f"cohort not like '{SYNTHETIC}%'"
    few = f"between 1 and {SMALL_CELL - 1}"
    for rules, which in ((COUNTS, of_real), (COUNTS_OF_REAL, "true")):
        for table in there & rules.keys():
            is_small = " or ".join(f"{count} {few}" for count in rules[table])
            con.execute(
                f"delete from evaluation.{table} where {which} and ({is_small})"
            )
    con.execute(
        f"update evaluation.survival set deaths = null where deaths {few} and {of_real}"
    )
