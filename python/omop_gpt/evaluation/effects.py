"""What goes with what: log odds ratios of exposures and later outcomes."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from omop_gpt.evaluation.cohorts import HOLDOUT, TRAIN
from omop_gpt.evaluation.concepts import NEVER, Concept, person_concepts
from omop_gpt.evaluation.distances import correlation, mean

if TYPE_CHECKING:
    import duckdb

    from omop_gpt.evaluation.results import Add

EFFECTS = 30  # pairs of an exposure and a later outcome,
AMONG = 150  # of the most frequent concepts
EFFECT_SHARE = 0.02  # of training persons have both, in this order
PRIOR_VARIANCE = 9.0  # of log odds ratios: none runs away where a cell is empty
MALE = 8507


def measure_effects(
    con: duckdb.DuckDBPyConnection, candidate: str, add: Add
) -> list[dict[str, Any]]:
    """Tell whether who has one concept gets another as often as in the holdout.

    Log odds ratios of EFFECTS pairs that the training alone chose, adjusted for age and
    sex: the candidate's on the holdout's, as slope and R² of the straight line through
    them (noise of the holdout pulls both below 1), and the share of pairs whose 95 %
    intervals overlap. Returns a picture.
    """
    pairs = effect_pairs(con)
    real, ours = (log_odds_ratios(con, name, pairs) for name in (HOLDOUT, candidate))
    known = np.isfinite(real).all(axis=1) & np.isfinite(ours).all(axis=1)
    x, y = real[known, 0], ours[known, 0]
    is_line = len(x) >= 3 and np.var(x) > 0
    add("effect_slope", np.cov(x, y)[0, 1] / np.var(x, ddof=1) if is_line else None)
    add("effect_r2", correlation(x, y) ** 2 if is_line else None)
    reach = 1.96 * (real[known, 1] + ours[known, 1])
    add("effect_overlap", mean(np.abs(x - y) <= reach))
    return [
        {
            "cohort": candidate,
            "exposure": exposure[1],
            "outcome": outcome[1],
            "log_odds_ratio": float(ours[number, 0]),
            "standard_error": float(ours[number, 1]),
            "log_odds_ratio_holdout": float(real[number, 0]),
            "standard_error_holdout": float(real[number, 1]),
        }
        for number, (exposure, outcome) in enumerate(pairs)
    ]


@lru_cache(maxsize=1)
def effect_pairs(con: duckdb.DuckDBPyConnection) -> list[tuple[Concept, Concept]]:
    """Choose pairs of an exposure and a later outcome by what the training alone shows.

    Exposures: conditions and drugs; outcomes: conditions; each of 2 to 50 % of persons,
    and at least EFFECT_SHARE have the outcome first after the exposure. Of all such
    pairs, sorted by how much more often that is than by chance, EFFECTS at equal steps:
    from the least to the most, with those between them.
    """
    query = """
        select source_table, concept_id
        from evaluation.prevalence
        where
            cohort = 'train' and share between 0.02 and 0.5
            and source_table in ('condition_occurrence', 'drug_exposure')
        order by persons desc, source_table, concept_id
        limit ?
    """
    concepts = con.execute(query, [AMONG]).fetchall()
    size, found = person_concepts(con, TRAIN, concepts)
    first = np.full((len(concepts), size), NEVER)
    first[found["position"], found["person"]] = found["first"]
    persons = np.count_nonzero(first < NEVER, axis=1)
    ranked = []
    for exposure, days in enumerate(first):
        later = np.count_nonzero((days < first) & (first < NEVER), axis=1)
        for outcome in np.flatnonzero(later >= max(EFFECT_SHARE * size, 1)).tolist():
            if concepts[outcome][0] == "condition_occurrence":
                lift = later[outcome] / persons[exposure] / persons[outcome]
                ranked.append((lift, concepts[exposure], concepts[outcome]))
    ranked.sort()
    steps = np.linspace(0, len(ranked) - 1, min(EFFECTS, len(ranked))).round()
    return [ranked[step][1:] for step in steps.astype(int).tolist()]


def log_odds_ratios(
    con: duckdb.DuckDBPyConnection, cohort: str, pairs: list[tuple[Concept, Concept]]
) -> np.ndarray:
    """Return the exposure's log odds ratio and its standard error: (pairs, 2).

    Who is exposed is followed from the first day of the exposure, who never is from the
    first day of the record; who has the outcome by then is left out. Covariates: sex,
    age on that day and its square. NaN where nobody, or everybody, is exposed or has
    the outcome.
    """
    concepts = sorted({concept for pair in pairs for concept in pair})
    size, found = person_concepts(con, cohort, concepts)
    first = np.full((len(concepts), size), NEVER)
    first[found["position"], found["person"]] = found["first"]
    query = """
        select
            coalesce(cast(first_date - date '1970-01-01' as int), $never) as start,
            coalesce(cast(gender_concept_id = $male as int), 0) as is_male,
            coalesce(year_of_birth, 0) as year_of_birth
        from evaluation_private.population_persons
        where cohort = $cohort
        order by person_id
    """
    names = {"cohort": cohort, "never": int(NEVER), "male": MALE}
    persons = con.execute(query, names).fetchnumpy()
    is_male = np.asarray(persons["is_male"])
    place = {concept: number for number, concept in enumerate(concepts)}
    ratios = np.full((len(pairs), 2), np.nan)
    for number, (exposure, outcome) in enumerate(pairs):
        exposed, ends = first[place[exposure]], first[place[outcome]]
        is_exposed = exposed < NEVER
        starts = np.where(is_exposed, exposed, np.asarray(persons["start"]))
        kept = (starts < NEVER) & (ends > starts)
        year = starts[kept].astype("datetime64[D]").astype("datetime64[Y]").astype(int)
        age = np.clip(year + 1970 - np.asarray(persons["year_of_birth"])[kept], 0, 119)
        # persons alike count as one row: the likelihood is the same
        cell = (age * 2 + is_male[kept]) * 2 + is_exposed[kept]
        total = np.bincount(cell, minlength=480).astype(float)
        cases = np.bincount(cell[ends[kept] < NEVER], minlength=480).astype(float)
        filled = np.flatnonzero(total)
        total, cases = total[filled], cases[filled]
        groups = filled % 2
        if 0 < groups @ total < total.sum() and 0 < cases.sum() < total.sum():
            years = (filled // 4 - 50) / 20
            one = np.ones(len(filled))
            design = np.stack([one, groups, filled // 2 % 2, years, years**2], axis=1)
            ratios[number] = logistic(design, cases, total)
    return ratios


def logistic(
    design: np.ndarray, cases: np.ndarray, total: np.ndarray
) -> tuple[float, float]:
    """Fit a logistic regression; return coefficient 1 and its standard error.

    Newton's method on (rows, columns) `design` with `cases` of `total` persons a row;
    column 0 is the constant. The others have a normal prior of PRIOR_VARIANCE.
    """
    precision = np.full(design.shape[1], 1 / PRIOR_VARIANCE)
    precision[0] = 0
    weights = np.zeros(design.shape[1])
    share = cases.sum() / total.sum()
    weights[0] = np.log(share / (1 - share))
    for _ in range(50):
        risk = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ (cases - total * risk) - precision * weights
        curvature = (design.T * (total * risk * (1 - risk))) @ design
        curvature += np.diag(precision + 1e-9)
        step = np.linalg.solve(curvature, gradient)
        # a step that is too long would jump over the top
        weights += step * min(1, 3 / max(np.abs(step).max(), 1e-12))
        if np.abs(step).max() < 1e-8:
            break
    return float(weights[1]), float(np.sqrt(np.linalg.inv(curvature)[1, 1]))
