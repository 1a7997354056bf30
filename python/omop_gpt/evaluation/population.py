"""Whether a cohort is the same population, and its visits are the same visits.

Every number compares a candidate with the holdout. Shares and histograms come from the
marts of `models/marts/evaluation/population`; what needs a matrix of persons or visits
by concepts is counted here. Nothing here sees the order of more than two visits, and a
copy of the training passes all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from omop_gpt.evaluation.cohorts import HOLDOUT, TRAIN
from omop_gpt.evaluation.distances import (
    identity_r2,
    ks,
    standard_w1,
    total_variation,
)
from omop_gpt.evaluation.intervals import (
    UNKNOWN,
    Draws,
    draw_persons,
    pairs_of,
    weighted,
)
from omop_gpt.grammar import read_csv
from omop_gpt.warehouse import project_folder

if TYPE_CHECKING:
    import duckdb

    from omop_gpt.evaluation.results import Add, Profile, Results

Concept = tuple[str, int]  # source_table, concept_id

COMPARED = 0.002  # concepts of at least this share of persons, in either cohort
COMMON = 0.005  # those whose ratio of shares is looked at
FREQUENT = 0.01  # those whose absolute differences are averaged
TOP = 150  # concepts whose pairs are counted
DRAWN = 30  # of them, in the picture
REDRAWN = 20  # pairs of cohorts of one population
LEAST_ROWS = 200  # numbers of a concept, stays or events of a visit type; on both sides
LEAST_PERSONS = 100  # of a subgroup, on both sides
LEAST_RANGE = 1_000  # numbers of the training, whose range is known
RANGE = (0.0005, 0.9995)  # quantiles of the training that it reaches between
FAR = 0.1  # Kolmogorov-Smirnov distance from which a concept's numbers are wrong
EXPECTED = 50  # training persons who would have a pair by chance; nobody has it
MINED = 2_000  # concepts among which such pairs are looked for
INDICATIONS = 3  # conditions at most that speak for a drug,
LIFT = 2.0  # each so much more frequent in those who have it than in all,
COVERED = 0.99  # and so many of them have one
EFFECTS = 30  # pairs of an exposure and a later outcome
EFFECT_SHARE = 0.02  # of training persons have both, in this order
PRIOR_VARIANCE = 9.0  # of log odds ratios: none runs away where a cell is empty
MALE = 8507
NEVER = np.int32(2**30)  # a day that does not come


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
        found = cell_counts(con, candidate, "demographics", "persons", keys)
        tv = excess = None
        if found:
            counts = found["all"]
            tv = total_variation(counts)
            pooled = counts.sum(axis=0) / counts.sum()
            sizes = counts.sum(axis=1).astype(int)
            draws = [rng.multinomial(sizes, pooled) for _ in range(REDRAWN)]
            excess = tv - mean([total_variation(drawn) for drawn in draws])
        add("demographics_tv", tv, stratum)
        add("demographics_tv_excess", excess, stratum)
    keys = "visit_concept_id, age_from"
    found = cell_counts(con, candidate, "visit_types", "visits", keys)
    add("visit_type_tv", total_variation(found["all"]) if found else None)
    found = cell_counts(
        con, candidate, "visit_domains", "events", "source_table", "visit_concept_id"
    )
    worst = [
        (total_variation(counts), visit_type)
        for visit_type, counts in found.items()
        if counts.sum(axis=1).min() >= LEAST_ROWS
    ]
    add("visit_domain_tv", max(worst, default=(None,))[0])
    for tv, visit_type in worst:
        add("visit_domain_tv", tv, visit_type)


def cell_counts(
    con: duckdb.DuckDBPyConnection,
    candidate: str,
    mart: str,
    weight: str,
    keys: str,
    within: str = "'all'",
) -> dict[str, np.ndarray]:
    """Return by stratum the (2, cells) counts of the holdout and the candidate.

    A stratum that one of them lacks is left out. NULL is a value of a key as any other.
    """
    query = f"""
        with cells as (
            select
                cast({within} as varchar) as stratum, {keys},
                coalesce(sum({weight}) filter (where cohort = $real), 0) as reals,
                coalesce(sum({weight}) filter (where cohort = $ours), 0) as ours
            from evaluation.{mart}
            where cohort in ($real, $ours)
            group by all
        )
        select stratum, list(reals order by {keys}), list(ours order by {keys})
        from cells
        group by 1
        having sum(reals) > 0 and sum(ours) > 0
        order by 1
    """
    rows = con.execute(query, {"real": HOLDOUT, "ours": candidate}).fetchall()
    return {stratum: np.array(counts, float) for stratum, *counts in rows}


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


def person_concepts(
    con: duckdb.DuckDBPyConnection, cohort: str, concepts: list[Concept]
) -> tuple[int, dict[str, np.ndarray]]:
    """Return the number of persons, and who has which of the concepts.

    Arrays of one length: person (from 0, by person_id), position of the concept, first
    and last day that the person has it (days since 1970).
    """
    query = """
        with persons as (
            select
                person_id, row_number() over (order by person_id) - 1 as person
            from evaluation_private.population_persons
            where cohort = $cohort
        ),
        chosen as (
            select
                unnest($tables) as source_table, unnest($ids) as concept_id,
                unnest($positions) as position
        )
        select
            cast(person as int) as person, cast(position as int) as position,
            cast(first_date - date '1970-01-01' as int) as first,
            cast(last_date - date '1970-01-01' as int) as last
        from evaluation_private.population_concepts
        inner join chosen using (source_table, concept_id)
        inner join persons using (person_id)
        where cohort = $cohort and first_date is not null
    """
    found = con.execute(query, {"cohort": cohort, **chosen(concepts)}).fetchnumpy()
    query = (
        "select count(*) from evaluation_private.population_persons where cohort = ?"
    )
    return con.execute(query, [cohort]).fetchone()[0], found


def chosen(concepts: list[Concept]) -> dict[str, list[Any]]:
    """Parameters of a query that looks at these concepts alone."""
    tables, ids = ([concept[n] for concept in concepts] for n in (0, 1))
    return {"tables": tables, "ids": ids, "positions": list(range(len(concepts)))}


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
    found = cell_counts(
        con,
        candidate,
        "value_quantiles",
        # one row of the 199 stands for the concept's numbers of a unit
        "case when quantile = 0.5 then value_count end",
        "unit_concept_id",
        "source_table || ' ' || concept_id",
    ).values()
    units = [total_variation(n) for n in found if n.sum(axis=1).min() >= LEAST_ROWS]
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


def measure_violations(
    con: duckdb.DuckDBPyConnection, candidate: str, add: Add
) -> None:
    """Count what cannot be: for a sex or age, after death, before birth, together.

    Shares of the persons whom a rule is about: who have a concept that OHDSI's Data
    Quality Dashboard calls plausible for one gender alone; who died; all. From the
    training come the ages at which nobody has a concept first, as a share of all first
    times, the pairs (genders among them) that are never together, and the conditions
    one of which nearly everybody has who has a drug (Yan et al., 2022, look for drugs
    without an indication): of all who have such a drug, those who have none.
    """
    plausible = {
        int(row["concept_id"]): row["gender_concept_id"]
        for row in read_csv(project_folder() / "seeds/omop/plausible_genders.csv")
    }
    query = """
        select concept_id, stratum, persons
        from evaluation.prevalence_by_stratum
        where cohort = ? and dimension = 'gender'
    """
    wrong = about = 0
    for concept_id, gender, persons in con.execute(query, [candidate]).fetchall():
        if concept_id in plausible and gender in set(plausible.values()):
            about += persons
            wrong += persons if gender != plausible[concept_id] else 0
    add("violation_gender", wrong / about if about else None)

    query = """
        select rule_name, persons_violating / persons
        from evaluation.clinical_violations
        where cohort = ?
    """
    rates = dict(con.execute(query, [candidate]).fetchall())
    for rule in ("after_death", "before_birth"):
        add(f"violation_{rule}", rates.get(rule))

    query = """
        with ages as (
            select
                source_table, concept_id, age_from,
                coalesce(sum(persons) filter (where cohort = 'train'), 0) as trained,
                coalesce(sum(persons) filter (where cohort = $ours), 0) as ours
            from evaluation.concept_ages
            where cohort in ('train', $ours)
            group by 1, 2, 3
        ),
        expectations as (
            select
                *,
                sum(trained) over (partition by source_table, concept_id)
                    * sum(trained) over (partition by age_from)
                    / sum(trained) over () as expected
            from ages
        )
        select
            coalesce(
                sum(ours) filter (where trained = 0 and expected >= $expected), 0
            ) / sum(ours)
        from expectations
        having sum(trained) > 0 and sum(ours) > 0
    """
    names = {"ours": candidate, "expected": EXPECTED}
    (rate,) = con.execute(query, names).fetchone() or (None,)
    add("violation_age", rate)

    concepts, genders, _ = training_matrix(con)
    pairs = exclusive_pairs(con)
    has = concept_matrix(con, candidate, concepts, genders)
    violates = (has @ pairs).multiply(has).sum(axis=1) > 0
    add("violation_never_together", mean(violates) if pairs.nnz else None)

    drugs, speaks = indications(con)
    takes = has[:, drugs].toarray() > 0
    reasons = (has @ speaks).toarray() > 0
    add("violation_no_indication", mean(~reasons[takes]) if takes.any() else None)


@lru_cache(maxsize=1)
def training_matrix(
    con: duckdb.DuckDBPyConnection,
) -> tuple[list[Concept], list[int], sparse.csr_array]:
    """Return the most frequent concepts, genders, and which training person has which.

    (persons, K + G) of 0 and 1. The same for each candidate.
    """
    query = """
        select source_table, concept_id
        from evaluation.prevalence
        where cohort = 'train' and persons >= ?
        order by persons desc, source_table, concept_id
        limit ?
    """
    concepts = con.execute(query, [EXPECTED, MINED]).fetchall()
    query = """
        select distinct gender_concept_id
        from evaluation.demographics
        where cohort = 'train' and gender_concept_id > 0
        order by 1
    """
    genders = [gender for (gender,) in con.execute(query).fetchall()]
    return concepts, genders, concept_matrix(con, TRAIN, concepts, genders)


@lru_cache(maxsize=1)
def exclusive_pairs(con: duckdb.DuckDBPyConnection) -> sparse.csr_array:
    """Return which pairs of concepts and genders no training person has.

    Though EXPECTED persons would, if the one had nothing to do with the other: (K + G,
    K + G) above the diagonal.
    """
    concepts, _, has = training_matrix(con)
    together = (has.T @ has).toarray()
    persons = np.diagonal(together)
    expected = np.outer(persons, persons) / max(has.shape[0], 1)
    pairs = np.triu((together == 0) & (expected >= EXPECTED), 1)
    pairs[len(concepts) :] = False  # of two genders nobody has both
    return sparse.csr_array(pairs.astype(np.int64))


@lru_cache(maxsize=1)
def indications(
    con: duckdb.DuckDBPyConnection,
) -> tuple[np.ndarray, sparse.csr_array]:
    """Return drugs (D,) and the conditions that speak for each: (K + G, D) of 0, 1.

    Those with up to INDICATIONS conditions, chosen one after the other by how many they
    explain whom the others do not, which leave at most 1 - COVERED of the training
    persons who have the drug.
    """
    concepts, _, has = training_matrix(con)
    tables = np.array([table for table, _ in concepts])
    conditions = np.flatnonzero(tables == "condition_occurrence")
    suffers = has[:, conditions]
    shares = suffers.sum(axis=0) / max(has.shape[0], 1)
    drugs, rows, columns = [], [], []
    for drug in np.flatnonzero(tables == "drug_exposure"):
        takers = suffers[has[:, [drug]].nonzero()[0]].toarray() > 0
        is_lifted = takers.mean(axis=0) >= LIFT * shares
        is_open, chosen = np.ones(len(takers), bool), []
        while len(chosen) < INDICATIONS and is_open.any() and is_lifted.any():
            explained = (takers[is_open] & is_lifted).sum(axis=0)
            best = int(explained.argmax())
            if not explained[best]:
                break
            chosen.append(best)
            is_open &= ~takers[:, best]
        if is_open.mean() <= 1 - COVERED:
            rows += conditions[chosen].tolist()
            columns += [len(drugs)] * len(chosen)
            drugs.append(drug)
    ones = np.ones(len(rows), np.int64)
    speaks = sparse.csr_array((ones, (rows, columns)), (has.shape[1], len(drugs)))
    return np.array(drugs, np.int64), speaks


def concept_matrix(
    con: duckdb.DuckDBPyConnection,
    cohort: str,
    concepts: list[Concept],
    genders: list[int],
) -> sparse.csr_array:
    """Return who has which concept and is of which gender: (persons, K + G) of 0, 1."""
    size, found = person_concepts(con, cohort, concepts)
    query = """
        select gender_concept_id
        from evaluation_private.population_persons
        where cohort = ?
        order by person_id
    """
    gender = con.execute(query, [cohort]).fetchnumpy()["gender_concept_id"]
    person, kind = np.nonzero(np.equal.outer(np.ma.filled(gender, 0), genders))
    rows = np.concatenate([found["person"], person])
    columns = np.concatenate([found["position"], kind + len(concepts)])
    ones = np.ones(len(rows), np.int64)
    shape = (size, len(concepts) + len(genders))
    return sparse.csr_array((ones, (rows, columns)), shape=shape)


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
    concepts = con.execute(query, [TOP]).fetchall()
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


def divergences(real: np.ndarray, ours: np.ndarray) -> tuple[float, float]:
    """Return KL(real ‖ ours) in nats and JS in bits, of counts plus one half."""
    if not real.sum() or not ours.sum():
        return np.nan, np.nan
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (real, ours))
    middle = (p + q) / 2
    js = (p * np.log2(p / middle) + q * np.log2(q / middle)).sum() / 2
    return float((p * np.log(p / q)).sum()), float(js)


def correlations(together: np.ndarray, persons: int) -> np.ndarray:
    """Pearson's r of each two columns of 0 and 1, of their counts (K, K) of persons."""
    if not persons:
        return np.full(together.shape, np.nan)
    share = np.diagonal(together) / persons
    deviation = np.sqrt(share * (1 - share))
    covariance = together / persons - np.outer(share, share)
    product = np.outer(deviation, deviation)
    # a column that is all the same goes with nothing
    return np.divide(covariance, product, where=product > 0, out=np.zeros_like(product))


def distances(
    real: np.ndarray,
    ours: np.ndarray,
    real_weights: np.ndarray | None = None,
    our_weights: np.ndarray | None = None,
) -> tuple[float, float]:
    """Return Wasserstein-1 and Kolmogorov-Smirnov distance of two weighted samples."""
    grid = np.unique(np.concatenate([real, ours]))
    shares = []
    for values, weights in ((real, real_weights), (ours, our_weights)):
        place = np.searchsorted(grid, values)
        mass = np.bincount(place, weights, len(grid))
        shares.append(np.cumsum(mass) / mass.sum())
    gap = np.abs(shares[0] - shares[1])
    return float((gap[:-1] * np.diff(grid)).sum()), float(gap.max())


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return Pearson's r; NaN where one of them is all the same."""
    known = len(x) >= 2 and np.std(x) > 0 and np.std(y) > 0
    return float(np.corrcoef(x, y)[0, 1]) if known else np.nan


def mean(values: Sequence[float] | np.ndarray) -> float:
    """Return the mean; NaN of nothing, in silence."""
    return float(np.mean(values)) if np.size(values) else np.nan
