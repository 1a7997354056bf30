"""Whether a cohort is the same population, and its visits are the same visits.

Every number compares a candidate with the holdout. Shares and histograms come from the
marts of `models/marts/evaluation/population`; what needs a matrix of persons or visits
by concepts is counted here. Nothing here sees the order of more than two visits, and a
copy of the training passes all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from omop_gpt.evaluation.cohorts import HOLDOUT
from omop_gpt.evaluation.concepts import (
    NEVER,
    Concept,
    chosen,
    concept_matrix,
    person_concepts,
)
from omop_gpt.evaluation.distances import (
    correlation,
    correlations,
    distances,
    divergences,
    identity_r2,
    ks,
    mean,
    standard_w1,
    total_variation,
)
from omop_gpt.evaluation.effects import measure_effects
from omop_gpt.evaluation.intervals import UNKNOWN, Draws, draw_persons, pairs_of
from omop_gpt.evaluation.marts import paired_counts
from omop_gpt.evaluation.values import LEAST_ROWS, measure_ranges, measure_values
from omop_gpt.evaluation.violations import measure_violations

if TYPE_CHECKING:
    import duckdb

    from omop_gpt.evaluation.results import Add, Profile, Results

COMPARED = 0.002  # concepts of at least this share of persons, in either cohort
COMMON = 0.005  # those whose ratio of shares is looked at
FREQUENT = 0.01  # those whose absolute differences are averaged
TOP = 150  # concepts whose pairs are counted
DRAWN = 30  # of them, in the picture
REDRAWN = 20  # pairs of cohorts of one population
LEAST_PERSONS = 100  # of a subgroup, on both sides


def measure(
    con: duckdb.DuckDBPyConnection,
    candidate: str,
    profile: Profile,
    results: Results,
) -> None:
    """Compare cohort `candidate` with the holdout; `con` has the cohorts and the marts.

    Adds metrics of the population (prevalence_*, demographics_*, subgroup_*,
    cooccurrence_*, correlation_gap, value_*, effect_*) and of visits (visit_*, *_w1 and
    *_ks of counts and stays, violation_*), and the curves cooccurrence, value_distance
    and effects. NaN is what the rows are too few for.
    """
    query = (
        "select count(*) from evaluation_private.population_persons where cohort = ?"
    )
    sizes = [con.execute(query, [name]).fetchone()[0] for name in (HOLDOUT, candidate)]

    draws = draw_persons(
        con, "evaluation_private.population_persons", "person_id", candidate, profile
    )

    add = results.adder(candidate, sizes[1])

    concepts, counts = concept_counts(con, candidate)
    # (2, K) shares of persons, of the holdout and of the candidate
    shares = counts / np.array([[max(size, 1)] for size in sizes])
    measure_prevalence(con, candidate, concepts, counts, sizes, draws, add)
    measure_subgroups(con, candidate, concepts, shares, add)
    measure_mixes(con, candidate, profile.seed, add)
    results.draw("cooccurrence", measure_pairs(con, candidate, sizes, draws, add))
    results.draw("value_distance", measure_values(con, candidate, add))
    measure_ranges(draws, add)
    results.draw("effects", measure_effects(con, candidate, add))
    measure_counts(con, candidate, draws, add)
    measure_violations(con, candidate, add)


def concept_counts(
    con: duckdb.DuckDBPyConnection, candidate: str
) -> tuple[list[Concept], np.ndarray]:
    """Return concepts of the holdout or the candidate, and (2, K) persons with each."""
    query = """
        select
            source_table, concept_id,
            coalesce(sum(persons) filter (where cohort = $real), 0),
            coalesce(sum(persons) filter (where cohort = $ours), 0)
        from evaluation.prevalence
        where cohort in ($real, $ours)
        group by 1, 2
        order by 1, 2
    """
    rows = con.execute(query, {"real": HOLDOUT, "ours": candidate}).fetchall()
    counts = np.array([row[2:] for row in rows], float).reshape(-1, 2).T
    return [row[:2] for row in rows], counts


def measure_prevalence(
    con: duckdb.DuckDBPyConnection,
    candidate: str,
    concepts: list[Concept],
    counts: np.ndarray,
    sizes: list[int],
    draws: Draws,
    add: Add,
) -> None:
    """Shares of persons with each concept, differences, ratios, the rare tail."""
    found = draws.cells(
        "evaluation_private.population_concepts", "concept_id", within="source_table"
    )
    ends = draws.intervals(
        draws.beside(found.counts, np.concatenate(draws.groups)),
        lambda n: compare_shares(n[:, 1:], n[:, 0]),
    )
    for name, value in compare_shares(counts, np.array(sizes)).items():
        add(name, value, ends=ends.get(name, UNKNOWN))

    is_empty, (all_real, all_ours) = not min(sizes), np.maximum(sizes, 1)
    shares = counts / np.array([[all_real], [all_ours]])
    largest = shares.max(axis=0, initial=0)
    kept = (largest >= COMPARED) & (not is_empty)
    frequent = (largest >= FREQUENT) & (not is_empty)
    gaps = np.abs(shares[0] - shares[1])
    tables = np.array([table for table, _ in concepts])
    for table in np.unique(tables):
        add("prevalence_apd", mean(gaps[frequent & (tables == table)]), table)

    common = (largest >= COMMON) & (not is_empty)
    with np.errstate(divide="ignore", invalid="ignore"):
        # half a person more, so that none of a concept has a ratio, and a doubt
        log_ratio = np.log((counts[1] + 0.5) / (all_ours + 1))
        log_ratio -= np.log((counts[0] + 0.5) / (all_real + 1))
        error = np.sqrt(((1 - shares) / (counts + 0.5)).sum(axis=0))
        pooled = counts.sum(axis=0) / (all_real + all_ours)
        spread = np.sqrt(pooled * (1 - pooled) * (1 / all_real + 1 / all_ours))
        z = (shares[1] - shares[0]) / spread
    # ratios outside, beyond the doubt that as many persons leave: 95 % intervals
    beyond = np.abs(log_ratio) - 1.96 * error > np.log(1.25)
    add("prevalence_ratio_outside_surely", mean(beyond[common]))
    misses = np.abs(z[kept & (spread > 0)]) > 3.3  # by chance: one of a thousand
    add("prevalence_misses", mean(misses))

    rare = (counts[0] >= 5) & (counts[0] < 50) & (not is_empty)
    add("rare_concept_coverage", mean(counts[1][rare] > 0))
    query = """
        select avg(cast(trained.concept_id is null as int))
        from (from evaluation.prevalence where cohort = $ours) as ours
        left join (from evaluation.prevalence where cohort = 'train') as trained
            using (source_table, concept_id)
    """
    add("concepts_not_in_train", con.execute(query, {"ours": candidate}).fetchone()[0])


def compare_shares(counts: np.ndarray, sizes: np.ndarray) -> dict[str, float]:
    """Compare shares of persons with each concept: R², correlation, differences.

    `counts`: (2, K) persons, of `sizes` (2,). R² is that of the identity line, not of
    the best line: a generator that halves each share has none. Average absolute
    prevalence difference: Yan et al., Nat Commun 2022.
    """
    is_known = min(sizes) > 0
    shares = counts / np.maximum(sizes, 1)[:, None]
    largest = shares.max(axis=0, initial=0)
    kept, frequent, common = (
        (largest >= least) & is_known for least in (COMPARED, FREQUENT, COMMON)
    )
    # a concept that one side lacks has a place on the log scale, too
    logs = np.log10(shares[:, kept] + 1 / max(sizes[0], 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = shares[1] / shares[0]
    return {
        "prevalence_r2": identity_r2(*shares[:, kept]),
        "prevalence_log_r2": identity_r2(*logs),
        "prevalence_log_r": correlation(*logs),
        "prevalence_apd": mean(np.abs(shares[0] - shares[1])[frequent]),
        "prevalence_ratio_outside": mean(((ratio < 0.8) | (ratio > 1.25))[common]),
    }


def measure_subgroups(
    con: duckdb.DuckDBPyConnection,
    candidate: str,
    concepts: list[Concept],
    shares: np.ndarray,
    add: Add,
) -> None:
    """R² and APD of shares within sex, age group, race and decade; and the worst ones.

    Concepts are those that are compared in the whole population.
    """
    place = {concept: number for number, concept in enumerate(concepts)}
    found: dict[str, np.ndarray] = {}
    persons: dict[str, list[int]] = {}
    query = """
        select
            dimension || ' ' || stratum, cohort = $ours, source_table, concept_id,
            share, stratum_persons
        from evaluation.prevalence_by_stratum
        where cohort in ($real, $ours)
        order by 1
    """
    rows = con.execute(query, {"real": HOLDOUT, "ours": candidate}).fetchall()
    for stratum, side, *concept, share, size in rows:
        found.setdefault(stratum, np.zeros(shares.shape))
        found[stratum][int(side), place[tuple(concept)]] = share
        persons.setdefault(stratum, [0, 0])[int(side)] = size
    largest = shares.max(axis=0, initial=0)
    worst_r2, worst_apd = [], []
    for stratum, (real, ours) in found.items():
        if min(persons[stratum]) < LEAST_PERSONS:
            continue
        kept, frequent = largest >= COMPARED, largest >= FREQUENT
        worst_r2.append(identity_r2(real[kept], ours[kept]))
        worst_apd.append(mean(np.abs(real - ours)[frequent]))
        add("subgroup_prevalence_r2", worst_r2[-1], stratum)
        add("subgroup_apd", worst_apd[-1], stratum)
    add("subgroup_prevalence_r2", min(worst_r2, default=None))
    add("subgroup_apd", max(worst_apd, default=None))


def measure_mixes(
    con: duckdb.DuckDBPyConnection, candidate: str, seed: int, add: Add
) -> None:
    """Total variation of demographics, visit types by age, domains within visits.

    Of demographics the excess, too: over the mean of REDRAWN pairs of cohorts of these
    sizes that are one population, for cells this small differ by chance alone. The
    worst visit type stands for the domains.
    """
    margins = {
        "gender": "gender_concept_id",
        "race": "race_concept_id",
        "ethnicity": "ethnicity_concept_id",
        "age_at_first_visit": "age_from",
        "decade": "decade",
    }
    rng = np.random.default_rng(seed)
    for stratum, keys in {"all": ", ".join(margins.values()), **margins}.items():
        cells = f"row({keys})"
        found = next(
            paired_counts(con, candidate, "demographics", cells, "persons"), None
        )
        tv = excess = None
        if found:
            counts = found[2]
            tv = total_variation(counts)
            pooled = counts.sum(axis=0) / counts.sum()
            sizes = counts.sum(axis=1).astype(int)
            draws = [rng.multinomial(sizes, pooled) for _ in range(REDRAWN)]
            excess = tv - mean([total_variation(drawn) for drawn in draws])
        add("demographics_tv", tv, stratum)
        add("demographics_tv_excess", excess, stratum)
    cells = "row(visit_concept_id, age_from)"
    found = next(paired_counts(con, candidate, "visit_types", cells, "visits"), None)
    add("visit_type_tv", total_variation(found[2]) if found else None)
    found = paired_counts(
        con,
        candidate,
        "visit_domains",
        "source_table",
        "events",
        "visit_concept_id",
        LEAST_ROWS,
    )
    worst = [(total_variation(counts), visit_type) for visit_type, _, counts in found]
    add("visit_domain_tv", max(worst, default=(None,))[0])
    for tv, visit_type in worst:
        add("visit_domain_tv", tv, visit_type)


def measure_pairs(
    con: duckdb.DuckDBPyConnection,
    candidate: str,
    sizes: list[int],
    draws: Draws,
    add: Add,
) -> list[dict[str, Any]]:
    """Pairs of the holdout's top concepts, in persons and in visits; returns a picture.

    Kullback-Leibler divergence of the holdout from the candidate, in nats, over counts
    of pairs with half a pair added to each (so that it falls with the number of persons
    and no floor decides it), and Jensen-Shannon divergence, in bits. The three ways to
    count pairs are those of CEHR-GPT's second level: ever in a life, the one before the
    other, in the same visit or the next.
    """
    query = """
        select source_table, concept_id
        from evaluation.prevalence
        where cohort = ?
        order by persons desc, source_table, concept_id
        limit ?
    """
    concepts = con.execute(query, [HOLDOUT, TOP]).fetchall()
    real, ours = (pair_counts(con, name, concepts) for name in (HOLDOUT, candidate))
    size = len(concepts)
    upper = np.triu(np.ones((size, size), bool), 1)
    apart = ~np.eye(size, dtype=bool)
    modes = {
        "cooccurrence": ("lifetime", upper),
        "cooccurrence_ordered": ("ordered", apart),
        "cooccurrence_nearby": ("nearby", apart),
        "visit_pair": ("same_visit", upper),
    }
    has = [concept_matrix(con, name, concepts, []) for name in (HOLDOUT, candidate)]
    ends = pair_ends(con, candidate, concepts, has, draws)
    for name, (mode, pairs) in modes.items():
        kl, js = divergences(real[mode][pairs], ours[mode][pairs])
        add(f"{name}_kl", kl, ends=ends.get(f"{name}_kl", UNKNOWN))
        add(f"{name}_js", js)
    third = np.arange(size) * 3 // max(size, 1)
    for number, stratum in enumerate(("frequent", "middle", "rare")):
        pairs = upper & np.equal.outer(third, third) & (third == number)
        kl, _ = divergences(real["lifetime"][pairs], ours["lifetime"][pairs])
        add("cooccurrence_kl", kl, stratum)

    measure_subgroup_pairs(con, candidate, has, add)

    by_person = [
        found["same_visit"][upper] / max(n, 1) for found, n in zip((real, ours), sizes)
    ]
    r2 = identity_r2(*by_person) if min(sizes) else None
    add("visit_pair_r2", r2, ends=ends.get("visit_pair_r2", UNKNOWN))
    both = [correlations(found["lifetime"], n) for found, n in zip((real, ours), sizes)]
    add("correlation_gap", mean(np.abs(both[0] - both[1])[upper]))

    return [
        {
            "cohort": candidate,
            "concept_a": concepts[a][1],
            "concept_b": concepts[b][1],
            "persons": int(ours["lifetime"][a, b]),
            "persons_holdout": int(real["lifetime"][a, b]),
            "share": ours["lifetime"][a, b] / max(sizes[1], 1),
            "share_holdout": real["lifetime"][a, b] / max(sizes[0], 1),
        }
        for a, b in np.argwhere(upper[:DRAWN, :DRAWN]).tolist()
    ]


def measure_subgroup_pairs(
    con: duckdb.DuckDBPyConnection,
    candidate: str,
    has: list[sparse.csr_array],
    add: Add,
) -> None:
    """Divergence of pairs in a life, within subgroups; the worst stands for all.

    `has`: which person has which concept, of the holdout and the candidate.
    """
    query = """
        select
            'gender ' || gender_concept_id as gender,
            'race ' || race_concept_id as race,
            'decade ' || decade as decade,
            'age ' || age_group as age
        from evaluation_private.population_persons
        where cohort = ?
        order by person_id
    """
    size = has[0].shape[1]
    upper = np.triu(np.ones((size, size), bool), 1)
    sides = [con.execute(query, [n]).fetchnumpy() for n in (HOLDOUT, candidate)]
    found = []
    for dimension in sides[0]:
        # who is of no stratum is NULL
        strata = [np.ma.filled(side[dimension], "") for side in sides]
        for stratum in sorted({*strata[0]} & {*strata[1]} - {""}):
            groups = [x[of == stratum] for x, of in zip(has, strata)]
            if min(group.shape[0] for group in groups) < LEAST_PERSONS:
                continue
            kl, _ = divergences(*((x.T @ x).toarray()[upper] for x in groups))
            add("subgroup_cooccurrence_kl", kl, stratum)
            found.append(kl)
    add("subgroup_cooccurrence_kl", max(found, default=None))


def pair_ends(
    con: duckdb.DuckDBPyConnection,
    candidate: str,
    concepts: list[Concept],
    has: list[sparse.csr_array],
    draws: Draws,
) -> dict[str, tuple[float, float]]:
    """Return the 95 % intervals of cooccurrence_kl and visit_pair_r2."""
    number, size = draws.weights.shape[2], len(concepts)
    upper = np.flatnonzero(np.triu(np.ones((size, size), bool), 1))
    lifetime, same_visit = [], []
    for side, cohort in enumerate((HOLDOUT, candidate)):
        group = draws.groups[side]
        lifetime.append(pairs_of(group, has[side], has[side], number)[:, upper])
        owner, visits = visit_concepts(con, cohort, concepts)
        group = draws.group_of(side, owner)
        same_visit.append(pairs_of(group, visits, visits, number)[:, upper])
    visits = draws.beside(sum(same_visit), np.concatenate(draws.groups))
    return draws.intervals(
        sum(lifetime), lambda n: {"cooccurrence_kl": divergences(*n)[0]}
    ) | draws.intervals(
        visits, lambda n: {"visit_pair_r2": identity_r2(*(n[:, 1:] / n[:, :1]))}
    )


def pair_counts(
    con: duckdb.DuckDBPyConnection, cohort: str, concepts: list[Concept]
) -> dict[str, np.ndarray]:
    """Count pairs of concepts in four ways, each (K, K) int64.

    lifetime: persons with both (the diagonal: with the concept); ordered: persons with
    the first on a day before the second, ever; same_visit: visits with both; nearby:
    pairs in the same visit, and with the second in the visit after the first's.
    """
    size = len(concepts)
    persons, found = person_concepts(con, cohort, concepts)
    first = np.full((size, persons), NEVER)
    last = np.full((size, persons), -NEVER)
    first[found["position"], found["person"]] = found["first"]
    last[found["position"], found["person"]] = found["last"]
    # float32 counts up to 16 million exactly
    has = (first < NEVER).astype(np.float32)
    ordered = np.zeros((size, size), np.int64)
    for position in range(size):
        ordered[position] = np.count_nonzero(first[position] < last, axis=1)

    owner, visits = visit_concepts(con, cohort, concepts)
    same_visit = (visits.T @ visits).toarray()
    before = np.flatnonzero(owner[:-1] == owner[1:])
    next_visit = (visits[before].T @ visits[before + 1]).toarray()
    return {
        "lifetime": (has @ has.T).astype(np.int64),
        "ordered": ordered,
        "same_visit": same_visit,
        "nearby": same_visit + next_visit,
    }


def visit_concepts(
    con: duckdb.DuckDBPyConnection, cohort: str, concepts: list[Concept]
) -> tuple[np.ndarray, sparse.csr_array]:
    """Return the person of each visit, (V,), and which concepts it has: (V, K)."""
    query = """
        with visits as (
            select
                person_id, visit_order,
                row_number() over (order by person_id, visit_order) - 1 as visit
            from evaluation_private.population_visits
            where cohort = $cohort
        ),
        chosen as (
            select
                unnest($tables) as source_table, unnest($ids) as concept_id,
                unnest($positions) as position
        )
        select distinct
            cast(visit as int) as visit, cast(position as int) as position
        from evaluation_private.events
        inner join chosen using (source_table, concept_id)
        inner join visits using (person_id, visit_order)
        where cohort = $cohort
    """
    found = con.execute(query, {"cohort": cohort, **chosen(concepts)}).fetchnumpy()
    query = """
        select person_id
        from evaluation_private.population_visits
        where cohort = ?
        order by person_id, visit_order
    """
    owner = con.execute(query, [cohort]).fetchnumpy()["person_id"]
    ones = np.ones(len(found["visit"]), np.int64)
    place = found["visit"], found["position"]
    return owner, sparse.csr_array((ones, place), shape=(len(owner), len(concepts)))


def measure_counts(
    con: duckdb.DuckDBPyConnection, candidate: str, draws: Draws, add: Add
) -> None:
    """Visits and concepts per person, events per visit, days of stays.

    Wasserstein-1 distance in the holdout's standard deviations (of stays: of log(1 +
    days), as it is), and Kolmogorov-Smirnov distance, from complete histograms. Stays
    are looked at by visit type, where the holdout's are longer than 0 days on average;
    the worst type stands for all.
    """
    query = """
        select
            visit_concept_id, list(bin) filter (where cohort = $real),
            list(bin) filter (where cohort = $ours),
            list(frequency) filter (where cohort = $real),
            list(frequency) filter (where cohort = $ours)
        from evaluation.histograms
        where cohort in ($real, $ours) and measure = $measure
        group by 1
        having count(distinct cohort) = 2
        order by 1
    """

    def histograms(measure: str) -> list[tuple[Any, list[np.ndarray]]]:
        names = {"real": HOLDOUT, "ours": candidate, "measure": measure}
        rows = con.execute(query, names).fetchall()
        return [
            (key, [np.array(column, float) for column in row]) for key, *row in rows
        ]

    visits = draws.cells("evaluation_private.population_persons", "visit_count")
    ends = {"visits_per_person": draws.interval(visits, 1, standard_w1)}
    for measure in ("visits_per_person", "events_per_visit", "concepts_per_person"):
        far, largest = np.nan, np.nan
        for _, (real, ours, *weights) in histograms(measure):
            far, largest = distances(real, ours, *weights)
            center = np.average(real, weights=weights[0])
            variance = np.average((real - center) ** 2, weights=weights[0])
            far = far / np.sqrt(variance) if variance else np.nan
        add(f"{measure}_w1", far, ends=ends.get(measure, UNKNOWN))
        add(f"{measure}_ks", largest)

    stays = {}
    for visit_type, (real, ours, *weights) in histograms("length_of_stay"):
        enough = min(weight.sum() for weight in weights) >= LEAST_ROWS
        if enough and (real * weights[0]).sum() > 0:
            w1, _ = distances(np.log1p(real), np.log1p(ours), *weights)
            stays[str(visit_type)] = w1, distances(real, ours, *weights)[1]
    days = draws.cells(
        "(from evaluation_private.population_visits where days is not null)",
        "greatest(days, 0)",
        within="visit_concept_id",
    )
    ends = {
        "length_of_stay_ks": draws.interval(
            days, LEAST_ROWS, lambda day, n: ks(n) if day @ n[0] else np.nan
        )
    }
    for number, name in enumerate(("length_of_stay_w1", "length_of_stay_ks")):
        worst = max((found[number] for found in stays.values()), default=None)
        add(name, worst, ends=ends.get(name, UNKNOWN))
        for visit_type, found in stays.items():
            add(name, found[number], visit_type)
