"""Whether the order and the timing of events are those of real patients.

Every number compares a candidate with the holdout. The marts of
`models/marts/evaluation/temporal` count; what needs pairs of concepts is counted here.

Each mart sums rows of a private one (`temporal_*`) that say whose they are: from those
come the intervals of what has a gate, by the same statistic of the counts of persons
drawn anew.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse, stats

from omop_gpt.evaluation.cohorts import HOLDOUT, TRAIN
from omop_gpt.evaluation.distances import (
    identity_r2,
    ks,
    standard_w1,
    total_variation,
    w1,
)
from omop_gpt.evaluation.intervals import UNKNOWN, Draws, draw_persons, pairs_of
from omop_gpt.evaluation.marts import paired_counts

if TYPE_CHECKING:
    import duckdb

    from omop_gpt.evaluation.results import Add, Profile, Results

PRIVATE = "evaluation_private.temporal"  # what the tables begin with

LEAST_GAPS = 200  # of a rank band, on both sides
LEAST_PERSONS = 50  # whose histories' lengths are compared
LEAST_VISITS = 500  # of a type, whose next states are compared
LEAST_OF_YEAR = 200  # visits of a calendar year
LEAST_ONSETS = 20  # of a condition
LEAST_DEATHS = 10
LEAST_AT_RISK = 50
LEAST_OCCURRENCES = 100  # of an acute condition
LEAST_TREATED = 100  # persons of a treated condition
LEAST_ORDERED = (30, 10)  # persons with a pair, of the training, and of the others
LAGS = (1, 2, 5, 10, 20)
TOP = 150  # concepts whose pairs are counted
GROUPS = 10  # of persons, in the jackknife of information
INFORMING = 50  # conditions, and drugs and procedures, whose information is measured
ONSETS = 20  # conditions whose age at onset is compared
TRENDS = 50  # concepts whose share changes most over the years
ORDERED = 50  # pairs of concepts of a strong order
STRONG = 0.9  # share of persons, from which on an order is strong
RMST_YEARS = 10
DAYS = 365.25  # of a year


def measure(
    con: duckdb.DuckDBPyConnection,
    candidate: str,
    profile: Profile,
    results: Results,
) -> None:
    """Compare cohort `candidate` with the holdout; `con` has the cohorts and the marts.

    Adds the metrics gap_*, transition_tv, next_visit_pair_r2, lag_*, onset_age_w1,
    incidence_log_ratio, survival_*, time_violation*, season_*, calendar_*, order_*,
    pathway_tv and history_*, and the curves lagged_information and pair_order. NaN is
    what the rows are too few for.
    """
    query = "select count(*) from evaluation_private.temporal_persons where cohort = ?"
    size = con.execute(query, [candidate]).fetchone()[0]

    draws = draw_persons(
        con, "evaluation_private.temporal_persons", "person_number", candidate, profile
    )

    add = results.adder(candidate, size)

    measure_gaps(con, candidate, draws, add)
    measure_transitions(con, candidate, draws, add)
    curve = measure_next_visits(con, candidate, draws, add)
    results.draw("lagged_information", curve)
    measure_repeats(con, candidate, draws, add)
    measure_onsets(con, candidate, draws, add)
    measure_survival(con, candidate, draws, add)
    measure_checks(con, candidate, add)
    measure_seasons(con, candidate, draws, add)
    measure_trend(con, candidate, add)
    results.draw("pair_order", measure_order(con, candidate, draws, add))
    measure_pathways(con, candidate, add)
    measure_lengths(con, candidate, add)


def measure_gaps(
    con: duckdb.DuckDBPyConnection, candidate: str, draws: Draws, add: Add
) -> None:
    """Days between the starts of successive visits, and whether gaps remember.

    KS of days; W1 of log(1 + days) in standard deviations of the holdout; total
    variation of classes that hold the days people agree on (a week, a month, a year) by
    themselves. Memory: Spearman's correlation of a person's gap with the next one, and
    the share of the variance of log(1 + days) between persons (intraclass correlation,
    one-way analysis of variance).
    """
    found: dict[tuple[str, str], float | None] = dict.fromkeys(
        (name, "all") for name in ("gap_ks", "gap_w1", "gap_class_tv")
    )
    for within in ("'all'", "'visit ' || rank_band", "'type ' || visit_concept_id"):
        asked = {"weight": "gaps", "within": within, "least": LEAST_GAPS}
        cells = paired_counts(con, candidate, "gaps", "days", **asked)
        for stratum, days, counts in cells:
            found["gap_ks", stratum] = ks(counts)
            found["gap_w1", stratum] = standard_w1(log_days(days), counts)
        cells = paired_counts(con, candidate, "gaps", "gap_class", **asked)
        for stratum, _, counts in cells:
            found["gap_class_tv", stratum] = total_variation(counts)
    cells = draws.cells(f"(from {PRIVATE}_visits where days is not null)", "days")
    ends = {
        "gap_ks": lambda _, n: ks(n),
        "gap_w1": lambda days, n: standard_w1(log_days(days), n),
    }
    for (name, stratum), value in found.items():
        if stratum == "all" and name in ends:
            add(name, value, ends=draws.interval(cells, LEAST_GAPS, ends[name]))
        else:
            add(name, value, stratum)

    query = """
        select person_number, days
        from evaluation_private.temporal_visits
        where cohort = ? and days is not null
        order by visit_number
    """
    memory, between = np.full((2, 2), np.nan)
    for side, cohort in enumerate((HOLDOUT, candidate)):
        rows = con.execute(query, [cohort]).fetchnumpy()
        person, days = (np.asarray(rows[name]) for name in ("person_number", "days"))
        memory[side] = gap_memory(person, days)
        between[side] = between_persons(person, log_days(days))
    add("gap_memory", memory[1])
    add("gap_memory_difference", abs(memory[1] - memory[0]))
    add("gap_between_persons", between[1])
    add("gap_between_persons_difference", abs(between[1] - between[0]))


def log_days(days: np.ndarray) -> np.ndarray:
    """Return log(1 + days), of days below 0 as of none."""
    return np.log1p(np.maximum(days, 0))


def gap_memory(person: np.ndarray, days: np.ndarray) -> float:
    """Return Spearman's correlation of each gap, in order, with its person's next."""
    next_to = np.flatnonzero(person[:-1] == person[1:])
    if len(next_to) < LEAST_GAPS:
        return np.nan
    ranks = stats.rankdata(days[next_to]), stats.rankdata(days[next_to + 1])
    if min(np.ptp(rank) for rank in ranks) == 0:
        return np.nan
    return float(np.corrcoef(*ranks)[0, 1])


def between_persons(person: np.ndarray, values: np.ndarray) -> float:
    """Return the intraclass correlation ICC(1) of persons with two values or more."""
    _, group, sizes = np.unique(person, return_inverse=True, return_counts=True)
    kept = sizes[group] > 1
    _, group, sizes = np.unique(group[kept], return_inverse=True, return_counts=True)
    values = values[kept]
    if len(values) < LEAST_GAPS or len(sizes) < 2:
        return np.nan
    means = np.bincount(group, values) / sizes
    within = ((values - means[group]) ** 2).sum() / (len(values) - len(sizes))
    among = (sizes * (means - values.mean()) ** 2).sum() / (len(sizes) - 1)
    # the size that unequal groups stand for
    size = (len(values) - (sizes**2).sum() / len(values)) / (len(sizes) - 1)
    spread = among + (size - 1) * within
    return float((among - within) / spread) if spread > 0 else np.nan


def measure_transitions(
    con: duckdb.DuckDBPyConnection, candidate: str, draws: Draws, add: Add
) -> None:
    """Compare what follows each type of visit, the end and death too: the worst TV."""
    cells = paired_counts(
        con,
        candidate,
        "visit_transitions",
        key="to_state",
        weight="transitions",
        within="from_state",
        least=LEAST_VISITS,
    )
    found = {state: total_variation(counts) for state, _, counts in cells}
    steps = draws.cells(f"{PRIVATE}_transitions", "to_state", within="from_state")
    ends = draws.interval(steps, LEAST_VISITS, lambda _, n: total_variation(n))
    add("transition_tv", max(found.values(), default=None), ends=ends)
    for state, value in found.items():
        add("transition_tv", value, state)


def measure_next_visits(
    con: duckdb.DuckDBPyConnection, candidate: str, draws: Draws, add: Add
) -> list[dict[str, Any]]:
    """Pairs of concepts in a visit and a later one; returns the curve of information.

    R² of the counts per person of the holdout's top concepts in a visit and in the next
    (HALO, Nat Commun 2023). Information: mutual information in nats of a condition at a
    visit and a drug or procedure `lag` visits later, its mean over all pairs of the
    holdout's most frequent ones.
    """
    (pairs, real), (our_pairs, ours) = (
        next_visit_counts(con, cohort) for cohort in (HOLDOUT, candidate)
    )
    ends = next_visit_ends(con, candidate, draws)
    add("next_visit_pair_r2", identity_r2(pairs, our_pairs), ends=ends)
    known = ~np.isnan(real + ours)
    gap = np.abs(ours - real)[known].mean() if known.any() else None
    add("lag_information_gap", gap)
    level = real[known].mean() if known.any() else 0
    add("lag_information_relative_gap", gap / level if level > 0 else None)
    return [
        {
            "cohort": candidate,
            "lag": lag,
            "information": our_value,
            "information_holdout": value,
        }
        for lag, value, our_value in zip(LAGS, real.tolist(), ours.tolist())
    ]


def next_visit_ends(
    con: duckdb.DuckDBPyConnection, candidate: str, draws: Draws
) -> tuple[float, float]:
    """Return the 95 % interval of next_visit_pair_r2."""
    top, *_ = chosen_concepts(con)
    found = []
    for side, cohort in enumerate((HOLDOUT, candidate)):
        person, visits = visit_matrix(con, cohort)
        before = np.flatnonzero(person[:-1] == person[1:])
        if len(before) < LEAST_GAPS:
            return UNKNOWN
        group = draws.group_of(side, person)
        told = visits[:, top]
        number = draws.weights.shape[2]
        pairs = pairs_of(group[before], told[before], told[before + 1], number)
        found.append(draws.beside(pairs, draws.group_of(side, np.unique(person))))

    def r2(counts: np.ndarray) -> dict[str, float]:
        return {"r2": identity_r2(*(counts[:, 1:] / counts[:, :1]))}

    return draws.intervals(found[0] + found[1], r2).get("r2", UNKNOWN)


# the holdout, beside one candidate after the other
@lru_cache(maxsize=2)
def next_visit_counts(
    con: duckdb.DuckDBPyConnection, cohort: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs in successive visits per person (K, K), and information by lag."""
    person, visits = visit_matrix(con, cohort)
    top, cause, effect = (visits[:, columns] for columns in chosen_concepts(con))
    before = np.flatnonzero(person[:-1] == person[1:])
    pairs = (top[before].T @ top[before + 1]).toarray()
    persons = len(np.unique(person)) if len(before) >= LEAST_GAPS else np.nan
    curve = [information(person, cause, effect, lag) for lag in LAGS]
    return pairs / persons, np.array(curve)


def chosen_concepts(con: duckdb.DuckDBPyConnection) -> list[np.ndarray]:
    """Return the holdout's most frequent concepts, conditions, drugs and procedures."""
    query = """
        select concept_number - 1 as place
        from evaluation.temporal_concepts
        where {} and persons > 0
        order by concept_number
        limit ?
    """
    rules = {
        "true": TOP,
        "source_table = 'condition_occurrence'": INFORMING,
        "source_table in ('drug_exposure', 'procedure_occurrence')": INFORMING,
    }
    return [
        con.execute(query.format(rule), [limit]).fetchnumpy()["place"]
        for rule, limit in rules.items()
    ]


@lru_cache(maxsize=2)
def visit_matrix(
    con: duckdb.DuckDBPyConnection, cohort: str
) -> tuple[np.ndarray, sparse.csr_array]:
    """Return the person of each visit, and visits by concepts, 1 where one is told."""
    query = """
        select person_number, visit_number
        from evaluation_private.temporal_visits
        where cohort = ?
        order by visit_number
    """
    visits = con.execute(query, [cohort]).fetchnumpy()
    person, number = (np.asarray(visits[n]) for n in ("person_number", "visit_number"))
    query = """
        select visit_number, concept_number
        from evaluation_private.temporal_visit_concepts
        inner join evaluation.temporal_concepts using (concept_number)
        where
            cohort = $cohort
            and (
                concept_number <= $top
                or table_rank <= $informing and source_table in (
                    'condition_occurrence', 'drug_exposure', 'procedure_occurrence'
                )
            )
    """
    asked = {"cohort": cohort, "top": TOP, "informing": INFORMING}
    found = con.execute(query, asked).fetchnumpy()
    query = "select coalesce(max(concept_number), 0) from evaluation.temporal_concepts"
    shape = (len(person), con.execute(query).fetchone()[0])
    row = np.searchsorted(number, found["visit_number"])
    column = np.asarray(found["concept_number"]) - 1
    told = np.ones(len(row), np.int64)
    return person, sparse.csr_array((told, (row, column)), shape=shape)


def information(
    person: np.ndarray, cause: sparse.csr_array, effect: sparse.csr_array, lag: int
) -> float:
    """Return the mean mutual information of columns `lag` visits apart, in nats.

    Few visits look informative by chance, the more so as those of a person are alike:
    that excess falls as 1 / persons, so a jackknife of GROUPS groups of them removes it
    (Quenouille 1956).
    """
    earlier = np.flatnonzero(person[:-lag] == person[lag:])
    if len(earlier) < LEAST_GAPS or not cause.shape[1] or not effect.shape[1]:
        return np.nan
    counts = []  # by group: joint, of the causes, of the effects, of all pairs
    for group in range(GROUPS):
        rows = earlier[person[earlier] % GROUPS == group]
        causes, effects = cause[rows], effect[rows + lag]
        both = (causes.T @ effects).toarray()
        margins = causes.sum(axis=0)[:, None], effects.sum(axis=0)[None, :]
        counts.append((both, *margins, len(rows)))
    total = [sum(parts) for parts in zip(*counts)]
    without = [
        mean_information(*(of_all - of_group for of_all, of_group in zip(total, group)))
        for group in counts
    ]
    whole = mean_information(*total)
    return GROUPS * whole - (GROUPS - 1) * float(np.mean(without))


def mean_information(
    both: np.ndarray, causes: np.ndarray, effects: np.ndarray, pairs: int
) -> float:
    """Return the mean mutual information of counts (C, E), (C, 1), (1, E), in nats."""
    nats = np.zeros(both.shape)
    for count, row, column in (
        (both, causes, effects),
        (causes - both, causes, pairs - effects),
        (effects - both, pairs - causes, effects),
        (pairs - causes - effects + both, pairs - causes, pairs - effects),
    ):
        told = count > 0
        ratio = np.where(told, count * float(pairs), 1) / np.where(
            told, row * column, 1
        )
        nats += count / max(pairs, 1) * np.log(ratio)
    return float(nats.mean())


def measure_repeats(
    con: duckdb.DuckDBPyConnection, candidate: str, draws: Draws, add: Add
) -> None:
    """How much of a visit comes back later: mean Jaccard index of visits a lag apart.

    Area: of the difference of the curves, linear between the lags, as a share of the
    area below the holdout's.
    """
    query = """
        select visit_lag, jaccard
        from evaluation.lag_repeats
        where cohort = ? and pairs >= ?
    """
    real, ours = (
        dict(con.execute(query, [cohort, LEAST_GAPS]).fetchall())
        for cohort in (HOLDOUT, candidate)
    )
    lags = [lag for lag in LAGS if lag in real and lag in ours]
    add("lag_5_jaccard", ours.get(5))
    known = 5 in lags and real[5] > 0
    add(
        "lag_5_relative_error",
        relative_error(real[5], ours[5]) if known else None,
        ends=lag_5_ends(draws),
    )
    for lag in lags:
        add("lag_jaccard", ours[lag], lag)
    curve = np.array([[found[lag] for lag in lags] for found in (real, ours)])
    area = np.trapezoid(curve[0], lags) if len(lags) > 1 else 0.0
    if area > 0:
        # a fine grid, for curves may cross between lags
        grid = np.linspace(lags[0], lags[-1], 1901)
        gap = np.abs(np.subtract(*(np.interp(grid, lags, side) for side in curve)))
    add("lag_area_difference", np.trapezoid(gap, grid) / area if area > 0 else None)


def relative_error(real: float, ours: float) -> float:
    """Return by which share `ours` is more or less than `real`."""
    return abs(ours / real - 1)


def lag_5_ends(draws: Draws) -> tuple[float, float]:
    """Return the 95 % interval of lag_5_relative_error."""
    repeats = draws.cells(
        f"""(
            select
                cohort, person_number, unnest(['jaccard', 'pairs']) as part,
                unnest([jaccard, pairs]) as number
            from {PRIVATE}_repeats
            where visit_lag = 5
        )""",
        "part",
        "sum(number order by number)",
    )
    if len(repeats.keys) < 2:
        return UNKNOWN

    def error(counts: np.ndarray) -> dict[str, float]:
        known = counts[:, 1].min() >= LEAST_GAPS and counts[0, 0] > 0
        found = relative_error(*(counts[:, 0] / counts[:, 1])) if known else np.nan
        return {"error": found}

    return draws.intervals(repeats.counts, error).get("error", UNKNOWN)


def measure_onsets(
    con: duckdb.DuckDBPyConnection, candidate: str, draws: Draws, add: Add
) -> None:
    """Age in years at which a frequent condition is first told: median W1; incidence.

    Incidence by five years of age: mean absolute logarithm of the ratio of rates, over
    cells with LEAST_ONSETS cases or more on both sides.
    """
    query = """
        select distinct cast(concept_id as varchar)
        from evaluation.onset_ages
        where table_rank <= ?
    """
    chosen = {concept for (concept,) in con.execute(query, [ONSETS]).fetchall()}
    cells = paired_counts(
        con, candidate, "onset_ages", "age", "persons", "concept_id", LEAST_ONSETS
    )
    found = {concept: w1(age, n) for concept, age, n in cells if concept in chosen}
    ages = draws.cells(
        f"(from {PRIVATE}_onset_ages where table_rank <= {ONSETS})",
        "age",
        within="concept_id",
    )
    ends = draws.interval(ages, LEAST_ONSETS, w1, np.median)
    add("onset_age_w1", np.median(list(found.values())) if found else None, ends=ends)
    for concept, value in found.items():
        add("onset_age_w1", value, concept)
    query = """
        select avg(abs(ln(ours.rate / real.rate)))
        from (from evaluation.onset_incidence where cohort = $ours) as ours
        inner join (from evaluation.onset_incidence where cohort = $real) as real
            using (concept_id, age_from)
        where
            ours.onsets >= $least and real.onsets >= $least
            and ours.rate > 0 and real.rate > 0
    """
    asked = {"ours": candidate, "real": HOLDOUT, "least": LEAST_ONSETS}
    add("incidence_log_ratio", con.execute(query, asked).fetchone()[0])


def measure_survival(
    con: duckdb.DuckDBPyConnection, candidate: str, draws: Draws, add: Add
) -> None:
    """Kaplan-Meier on age, with late entry, and from the first day that is known.

    And from the first day of the five conditions that most of the holdout's dead had.
    Largest difference of the curves while at least LEAST_AT_RISK are at risk on both
    sides; both are 1 where that begins. Restricted mean survival time: the area below
    the curve of the first RMST_YEARS of follow-up, in years.
    """
    query = """
        select distinct axis
        from evaluation_private.temporal_spans
        where cohort = ? and axis not in ('age', 'follow_up')
        order by axis
    """
    conditions = [axis for (axis,) in con.execute(query, [HOLDOUT]).fetchall()]
    found = {
        axis: survival_curves(con, candidate, axis)
        for axis in ("age", "follow_up", *conditions)
    }
    for axis, (days, curves) in found.items():
        gap = np.abs(curves[0] - curves[1]).max() if len(days) else None
        if axis == "age":
            add("survival_sup", gap, ends=survival_ends(draws))
        else:
            add("survival_sup", gap, axis)
    days, curves = found["follow_up"]
    last = RMST_YEARS * DAYS
    if len(days) and days[-1] >= last:
        ends = np.append(days[days < last], last)
        # on a day, the curve is what it was before: who dies has lived to its end
        before = np.column_stack([np.ones(2), curves[:, days < last]])
        means = (before * np.diff(ends, prepend=0)).sum(axis=1) / DAYS
        add("survival_rmst_difference", abs(means[1] - means[0]))
    else:
        add("survival_rmst_difference", None)


def survival_ends(draws: Draws) -> tuple[float, float]:
    """Return the 95 % interval of survival_sup on age."""
    lives = draws.cells(
        f"""(
            select
                cohort, person_number,
                unnest(['at_risk', 'at_risk', 'deaths']) as part,
                unnest([day_in, day_out + 1, day_out]) as life_day,
                unnest([1, -1, deaths]) as number
            from {PRIVATE}_spans
            where axis = 'age'
        )""",
        "life_day",
        "sum(number)",
        within="part",
    )
    days, day = np.unique(lives.keys, return_inverse=True)
    is_death = lives.strata == "deaths"

    def sup(counts: np.ndarray) -> dict[str, float]:
        changes, deaths = np.zeros((2, 2, len(days)))
        changes[:, day[~is_death]] = counts[:, ~is_death]
        deaths[:, day[is_death]] = counts[:, is_death]
        _, (real, ours) = kaplan_meier(days, changes.cumsum(axis=1), deaths)
        return {"sup": np.abs(real - ours).max() if len(real) else np.nan}

    return draws.intervals(lives.counts, sup).get("sup", UNKNOWN)


def survival_curves(
    con: duckdb.DuckDBPyConnection, candidate: str, axis: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return days (n,) and Kaplan-Meier curves (2, n) after them, holdout first.

    Empty where the risk sets never are large enough on both sides, or fewer than
    LEAST_DEATHS die while they are.
    """
    query = """
        select life_day, at_risk, deaths
        from evaluation_private.temporal_risk_sets
        where cohort = ? and axis = ?
        order by life_day
    """
    sides = [
        np.array(con.execute(query, [cohort, axis]).fetchall(), int).reshape(-1, 3)
        for cohort in (HOLDOUT, candidate)
    ]
    days = np.unique(np.concatenate([side[:, 0] for side in sides]))
    at_risk, deaths = np.zeros((2, 2, len(days)))
    for number, (day, persons, died) in enumerate(side.T for side in sides):
        # a risk set stays until somebody comes or goes
        place = np.searchsorted(day, days, side="right")
        at_risk[number] = np.append(0, persons)[place]
        deaths[number, np.searchsorted(days, day)] = died
    return kaplan_meier(days, at_risk, deaths)


def kaplan_meier(
    days: np.ndarray, at_risk: np.ndarray, deaths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `survival_curves` does, of (2, n) persons at risk and deaths."""
    enough = np.flatnonzero((at_risk >= LEAST_AT_RISK).all(axis=0))
    inside = slice(enough[0], enough[-1] + 1) if len(enough) else slice(0, 0)
    days, at_risk, deaths = days[inside], at_risk[:, inside], deaths[:, inside]
    deaths = np.where(at_risk >= LEAST_AT_RISK, deaths, 0)
    if deaths.sum(axis=1).min() < LEAST_DEATHS:
        return np.zeros(0), np.zeros((2, 0))
    return days, np.cumprod(1 - deaths / np.maximum(at_risk, 1), axis=1)


def measure_checks(con: duckdb.DuckDBPyConnection, candidate: str, add: Add) -> None:
    """Shares of rows whose dates are out of order; over all: the worst excess.

    Excess over the holdout's share, and not below 0: real records have faults of their
    own, which a model may repeat.
    """
    query = """
        select
            check_name,
            max(rows_violated / denominator) filter (where cohort = $ours) as ours,
            max(rows_violated / denominator) filter (where cohort = $real) as real
        from evaluation.time_checks
        where cohort in ($ours, $real) and denominator > 0
        group by 1
        order by 1
    """
    rows = con.execute(query, {"real": HOLDOUT, "ours": candidate}).fetchall()
    known = [row for row in rows if None not in row]
    excess = [max(ours - real, 0) for _, ours, real in known]
    add("time_violation_excess", max(excess, default=None))
    for name, ours, _ in known:
        add("time_violations", ours, name)


def measure_seasons(
    con: duckdb.DuckDBPyConnection, candidate: str, draws: Draws, add: Add
) -> None:
    """Compare the months of the acute conditions with the strongest seasons.

    Total variation of months, of each condition; of all together, in months from the
    peak that each has in the training cohort, for seasons of the year would make up for
    each other. Shift: of the first harmonic of the twelve counts, in months, the median
    of the conditions; the month with the largest count would jump by chance.
    """
    asked = {"weight": "occurrences", "least": LEAST_OCCURRENCES}
    pooled = paired_counts(con, candidate, "seasonality", "months_from_peak", **asked)
    found: dict[str, float | None] = {"all": None}
    found |= {stratum: total_variation(counts) for stratum, _, counts in pooled}
    shifts = []
    for stratum, month, counts in paired_counts(
        con, candidate, "seasonality", "event_month", within="concept_id", **asked
    ):
        found[stratum] = total_variation(counts)
        real, ours = counts @ np.exp(2j * np.pi * month / 12)
        shifts.append(abs(np.angle(ours * np.conj(real))) * 6 / np.pi)
    months = draws.cells(f"{PRIVATE}_acute_days", "months_from_peak")
    ends = draws.interval(months, LEAST_OCCURRENCES, lambda _, n: total_variation(n))
    for stratum, value in found.items():
        add("season_tv", value, stratum, ends if stratum == "all" else UNKNOWN)
    add("season_peak_shift", np.median(shifts) if shifts else None)


def measure_trend(con: duckdb.DuckDBPyConnection, candidate: str, add: Add) -> None:
    """Compare what is told in each calendar year, and how much.

    The share of a concept is of all that visits of the year tell of the TOP concepts,
    for how much a visit tells changes, too. Of the TRENDS concepts whose share changes
    most in the training (chi-squared of years beyond its degrees of freedom): the
    correlation of their departures from their mean, each in its standard deviation, so
    that frequent concepts do not drown rare ones; and the mean absolute difference of
    shares, which count by their year. Besides, the total variation of visits by year.
    """
    trained, real, ours = (
        year_counts(con, candidate, cohort) for cohort in (TRAIN, HOLDOUT, candidate)
    )
    year_visits = np.array([side[1] for side in (real, ours)])
    known = (year_visits >= LEAST_OF_YEAR).all(axis=0)
    is_known = year_visits.sum(axis=1).min() >= LEAST_OF_YEAR
    add("calendar_tv", total_variation(year_visits) if is_known else None)

    trend = trend_strengths(trained[0])
    chosen = np.argsort(-trend, kind="stable")[:TRENDS]
    chosen = chosen[trend[chosen] > 0]
    if not len(chosen) or known.sum() < 2:
        add("calendar_trend_r", None)
        add("calendar_trend_gap", None)
        return
    told = np.array([side[0][:, known] for side in (real, ours)])
    totals = np.maximum(told.sum(axis=1), 1)
    weight = totals.min(axis=0)
    shares = told[:, chosen] / totals[:, None]  # (2, concepts, years)
    means = np.average(shares, axis=2, weights=weight)
    spread = np.sqrt(means[0] * (1 - means[0]))
    departures = (shares - means[:, :, None])[:, spread > 0] / spread[spread > 0, None]
    # each concept's departures sum to 0 by their weights
    products = np.einsum("acy,bcy,y->ab", departures, departures, weight)
    sizes = products[0, 0] * products[1, 1]
    add("calendar_trend_r", products[0, 1] / sizes**0.5 if sizes > 0 else None)
    gaps = np.abs(shares[0] - shares[1]).mean(axis=0)
    add("calendar_trend_gap", np.average(gaps, weights=weight))


def year_counts(
    con: duckdb.DuckDBPyConnection, candidate: str, cohort: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return visits of `cohort` with each concept (concepts, years), and all (years,).

    Concepts and years are those of training, holdout and candidate, in their order.
    """
    query = """
        select
            list(visits order by source_table, concept_id), max(year_visits)
        from (
            select
                source_table, concept_id, visit_year,
                coalesce(max(visits) filter (where cohort = $cohort), 0) as visits,
                coalesce(max(year_visits) filter (where cohort = $cohort), 0)
                    as year_visits
            from evaluation.calendar_trend
            where cohort in ('train', $real, $ours)
            group by 1, 2, 3
        )
        group by visit_year
        order by visit_year
    """
    asked = {"cohort": cohort, "real": HOLDOUT, "ours": candidate}
    rows = con.execute(query, asked).fetchall()
    if not rows:  # too few persons for any concept to be counted
        return np.zeros((0, 0)), np.zeros(0)
    visits = np.array([row[0] for row in rows], float).reshape(len(rows), -1).T
    return visits, np.array([row[1] for row in rows], float)


def trend_strengths(told: np.ndarray) -> np.ndarray:
    """Return chi-squared of years less its degrees of freedom; (concepts, years)."""
    totals = told.sum(axis=0)
    share = told.sum(axis=1) / max(totals.sum(), 1)
    variance = share * (1 - share)
    departure = told - np.outer(share, totals)
    chi2 = (departure**2 / np.maximum(totals, 1)).sum(axis=1)
    freedom = np.count_nonzero(totals) - 1
    return (
        np.where(variance > 0, chi2 / np.where(variance > 0, variance, 1), 0) - freedom
    )


def measure_order(
    con: duckdb.DuckDBPyConnection, candidate: str, draws: Draws, add: Add
) -> list[dict[str, Any]]:
    """Pairs of concepts of which one nearly always comes first; returns them.

    Of persons who have both, on days apart, the share who have the first one first:
    above STRONG in the training, which alone chooses, for a pair that the holdout chose
    would be weaker in anybody else. What is told often comes before what is told seldom
    in any order, so pairs must go beyond that: the ORDERED pairs whose share exceeds
    most, in standard errors, the one that a person's events in random order would have.
    """
    chosen_first, chosen_both, by_chance = first_counts(con, TRAIN)
    first, both, _ = first_counts(con, HOLDOUT)
    our_first, our_both, _ = first_counts(con, candidate)
    with np.errstate(invalid="ignore", divide="ignore"):
        share, our_share = first / both, our_first / our_both
        strength = chosen_first / chosen_both
        excess = (strength - by_chance / chosen_both) * np.sqrt(chosen_both)
    strong = (chosen_both >= LEAST_ORDERED[0]) & (strength > STRONG)
    pairs = np.argwhere(strong)[np.argsort(-excess[strong], kind="stable")]
    known = [
        (int(a), int(b))
        for a, b in pairs[:ORDERED]
        if min(both[a, b], our_both[a, b]) >= LEAST_ORDERED[1]
    ]
    reals, ours = (
        np.array([side[pair] for pair in known]) for side in (share, our_share)
    )
    add("order_consistency", (ours > 0.5).mean() if known else None)
    add(
        "order_gap",
        np.abs(ours - reals).mean() if known else None,
        ends=order_ends(con, candidate, known, draws),
    )
    query = (
        "select concept_id from evaluation.temporal_concepts order by concept_number"
    )
    concept = [row[0] for row in con.execute(query).fetchall()]
    return [
        {
            "cohort": candidate,
            "concept_a": concept[a],
            "concept_b": concept[b],
            "share": float(our_share[a, b]),
            "share_holdout": float(share[a, b]),
        }
        for a, b in known
    ]


def order_ends(
    con: duckdb.DuckDBPyConnection,
    candidate: str,
    pairs: list[tuple[int, int]],
    draws: Draws,
) -> tuple[float, float]:
    """Return the 95 % interval of order_gap over these pairs."""
    if not pairs:
        return UNKNOWN
    earlier, later = np.array(pairs).T
    counts = np.zeros((draws.weights.shape[2], 2 * len(pairs)))
    for side, cohort in enumerate((HOLDOUT, candidate)):
        persons, day, events = first_days(con, cohort)
        groups = draws.group_of(side, persons)
        apart = (events[earlier] > 0) & (events[later] > 0)
        apart &= day[earlier] != day[later]
        is_first = apart & (day[earlier] < day[later])
        for cell, told in enumerate((*is_first, *apart)):
            counts[:, cell] += np.bincount(groups[told], minlength=len(counts))

    def gap(counts: np.ndarray) -> dict[str, float]:
        first, both = np.split(counts, 2, axis=1)
        shares = np.divide(
            first, both, out=np.full(first.shape, np.nan), where=both > 0
        )
        found = np.abs(shares[1] - shares[0])
        return {"gap": np.nanmean(found) if np.isfinite(found).any() else np.nan}

    return draws.intervals(sparse.csr_array(counts), gap).get("gap", UNKNOWN)


@lru_cache(maxsize=3)
def first_days(
    con: duckdb.DuckDBPyConnection, cohort: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return persons (P,), and of each frequent concept (TOP, P) its day and events.

    The day on which it is first told, counted from 1970, and how often it is told: 0
    where a person does not have it.
    """
    query = """
        select
            person_number,
            concept_number - 1 as concept,
            cast(onset_date - date '1970-01-01' as int) as day,
            cast(events as float) as events
        from evaluation_private.temporal_onsets
        where cohort = ? and concept_number <= ? and onset_date is not null
    """
    rows = con.execute(query, [cohort, TOP]).fetchnumpy()
    persons, person = np.unique(rows["person_number"], return_inverse=True)
    shape = (TOP, len(persons))
    day, events = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    day[rows["concept"], person] = rows["day"]
    events[rows["concept"], person] = rows["events"]
    return persons, day, events


@lru_cache(maxsize=3)
def first_counts(
    con: duckdb.DuckDBPyConnection, cohort: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count persons by pair of concepts a, b, each (TOP, TOP).

    Those who have a first on a day before b; who have both first on days apart; and of
    these, how many would have a first were each person's events in random order.
    """
    _, day, events = first_days(con, cohort)
    before, by_chance = np.zeros((2, TOP, TOP))
    for concept in range(TOP):
        has = events[concept] > 0
        day_of, events_of = day[concept, has], events[concept, has]
        apart = (events[:, has] > 0) & (day[:, has] != day_of)
        before[concept] = (apart & (day_of < day[:, has])).sum(axis=1)
        chance = events_of / (events_of + events[:, has])
        by_chance[concept] = (chance * apart).sum(axis=1)
    return before, before + before.T, by_chance


def measure_pathways(con: duckdb.DuckDBPyConnection, candidate: str, add: Add) -> None:
    """Compare the first three drugs after a treated condition: mean total variation."""
    cells = paired_counts(
        con, candidate, "pathways", "pathway", "persons", "concept_id", LEAST_TREATED
    )
    found = {concept: total_variation(counts) for concept, _, counts in cells}
    add("pathway_tv", np.mean(list(found.values())) if found else None)
    for concept, value in found.items():
        add("pathway_tv", value, concept)


def measure_lengths(con: duckdb.DuckDBPyConnection, candidate: str, add: Add) -> None:
    """Events of a person, and months from the first to the last: KS."""
    cells = paired_counts(
        con, candidate, "history_lengths", "bin", "persons", "measure", LEAST_PERSONS
    )
    found = {measure: ks(counts) for measure, _, counts in cells}
    add("history_events_ks", found.get("events"))
    add("history_span_ks", found.get("months"))
