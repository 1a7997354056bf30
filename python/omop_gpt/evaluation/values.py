"""Numbers of measurements and observations: their distributions, units and ranges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omop_gpt.evaluation.cohorts import HOLDOUT, TRAIN
from omop_gpt.evaluation.distances import distances, mean, total_variation
from omop_gpt.evaluation.intervals import UNKNOWN, Draws, weighted
from omop_gpt.evaluation.marts import paired_counts

if TYPE_CHECKING:
    import duckdb

    from omop_gpt.evaluation.results import Add

LEAST_ROWS = 200  # numbers of a concept (or stays, events of a visit type), both sides
LEAST_RANGE = 1_000  # numbers of the training, whose range is known
RANGE = (0.0005, 0.9995)  # quantiles of the training that it reaches between
FAR = 0.1  # Kolmogorov-Smirnov distance from which a concept's numbers are wrong


def measure_values(
    con: duckdb.DuckDBPyConnection, candidate: str, add: Add
) -> list[dict[str, Any]]:
    """Numbers of each concept and unit, and how often there is none; returns a picture.

    Wasserstein-1 distance in the holdout's standard deviations, and Kolmogorov-Smirnov
    distance, both of 199 quantiles: the tails beyond half a percent are not looked at.
    """
    query = """
        select
            source_table, concept_id, unit_concept_id,
            list(value_as_number order by quantile) filter (where cohort = $real),
            list(value_as_number order by quantile) filter (where cohort = $ours),
            max(standard_deviation) filter (where cohort = $real)
        from evaluation.value_quantiles
        where cohort in ($real, $ours) and value_count >= $least
        group by 1, 2, 3
        having count(distinct cohort) = 2
        order by 1, 2, 3
    """
    cohorts = {"real": HOLDOUT, "ours": candidate}
    drawn = []
    rows = con.execute(query, {**cohorts, "least": LEAST_ROWS}).fetchall()
    for table, concept_id, unit, real, ours, deviation in rows:
        w1, ks = distances(np.array(real), np.array(ours))
        w1 = w1 / deviation if deviation > 0 else (0.0 if w1 == 0 else np.inf)
        stratum = f"{table} {concept_id}" + (f" {unit}" if unit is not None else "")
        add("value_w1", w1, stratum)
        add("value_ks", ks, stratum)
        drawn.append(
            {
                "cohort": candidate,
                "source_table": table,
                "concept_id": concept_id,
                "unit_concept_id": unit,
                "w1": w1,
                "ks": ks,
            }
        )
    all_ks = np.array([row["ks"] for row in drawn])
    add("value_w1", np.median([row["w1"] for row in drawn]) if drawn else None)
    add("value_ks", np.median(all_ks) if drawn else None)
    add("value_ks_far", mean(all_ks > FAR))

    query = """
        select avg(gap), max(gap)
        from (
            select abs(max(missing_share) - min(missing_share)) as gap
            from evaluation.value_missing
            where cohort in ($real, $ours) and row_count >= $least
            group by source_table, concept_id
            having count(*) = 2
        )
    """
    average, largest = con.execute(query, {**cohorts, "least": LEAST_ROWS}).fetchone()
    add("value_missing_gap", average)
    add("value_missing_gap_largest", largest)
    found = paired_counts(
        con,
        candidate,
        "value_quantiles",
        "unit_concept_id",
        # one row of the 199 stands for the concept's numbers of a unit
        "case when quantile = 0.5 then value_count end",
        "source_table || ' ' || concept_id",
        LEAST_ROWS,
    )
    units = [total_variation(counts) for *_, counts in found]
    add("value_unit_tv", mean(units))

    query = """
        with deviations as (
            select source_table, concept_id, unit_concept_id, standard_deviation
            from evaluation.value_quantiles
            where cohort = $real and quantile = 0.5 and standard_deviation > 0
        ),
        groups as (
            select
                source_table, concept_id, unit_concept_id,
                abs(max(value_mean) - min(value_mean)) as gap
            from evaluation.value_means
            where cohort in ($real, $ours) and value_count >= $least
            group by 1, 2, 3, gender_concept_id, age_from
            having count(*) = 2
        )
        select avg(gap / standard_deviation)
        from groups inner join deviations
            on groups.source_table = deviations.source_table
            and groups.concept_id = deviations.concept_id
            and groups.unit_concept_id
                is not distinct from deviations.unit_concept_id
    """
    (gap,) = con.execute(query, {**cohorts, "least": LEAST_ROWS}).fetchone()
    add("value_group_gap", gap)
    return drawn


def measure_ranges(draws: Draws, add: Add) -> None:
    """Share of numbers out of the training's range: one in a thousand, of real ones.

    Of concepts and units of LEAST_RANGE numbers there, from one of RANGE to the other.
    """
    rows = f"""(
        with ranges as (
            select
                source_table, concept_id, unit_concept_id,
                quantile_disc(value_as_number, {RANGE[0]}) as lowest,
                quantile_disc(value_as_number, {RANGE[1]}) as highest
            from evaluation_private.events
            where cohort = '{TRAIN}' and value_as_number is not null
            group by 1, 2, 3
            having count(*) >= {LEAST_RANGE}
        )
        select
            events.cohort, events.person_id,
            (value_as_number not between lowest and highest)::int as is_outside
        from evaluation_private.events as events
        inner join ranges
            on
                events.source_table = ranges.source_table
                and events.concept_id = ranges.concept_id
                and events.unit_concept_id is not distinct from ranges.unit_concept_id
        where events.value_as_number is not null
    )"""
    cells = draws.cells(rows, "is_outside")

    def outside(is_outside: np.ndarray, counts: np.ndarray) -> float:
        return float(is_outside @ counts[1] / counts[1].sum())

    whole = weighted(draws.whole, cells.counts)
    value = cells.combined(whole, LEAST_ROWS, outside) if len(cells.keys) else np.nan
    ends = draws.interval(cells, LEAST_ROWS, outside) if len(cells.keys) else UNKNOWN
    add("value_outside", value, ends=ends)
