"""Intervals of distances between cohorts: against scipy, and against what is true."""

from __future__ import annotations

import dataclasses

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from omop_gpt.evaluation import intervals
from omop_gpt.evaluation.distances import ks, total_variation
from omop_gpt.evaluation.intervals import UNKNOWN, draw_persons, interval_of, pairs_of
from omop_gpt.evaluation.results import PROFILES
from scipy import sparse, stats

KINDS = 6
EVEN = np.full(KINDS, 1 / KINDS)


def histories(rng, persons: int, shares=EVEN, groups: int = 1) -> dict:
    """Make rows of persons, of whom each has many rows, most of them of one kind.

    Dirichlet's distribution of a person's own shares has `shares` as its mean: that is
    the kinds' distribution in the population. `part`: which of several groups of rows.
    """
    rows = 1 + rng.poisson(6, persons)
    own = rng.dirichlet(2 * np.asarray(shares), persons)
    person = np.repeat(np.arange(persons), rows)
    kind = (rng.random(len(person))[:, None] > own[person].cumsum(axis=1)).sum(axis=1)
    return {
        "person_id": person,
        "kind": kind,
        "part": rng.integers(0, groups, len(kind)),
    }


@pytest.fixture(scope="module")
def con():
    with duckdb.connect() as made:
        made.execute("set threads = 1")
        yield made


def put(con, real: dict, ours: dict) -> None:
    for cohort, rows in (("holdout", real), ("synthetic", ours)):
        con.register(cohort, pa.table(rows))
    con.execute(
        "create or replace table rows as select 'holdout' as cohort, * from holdout "
        "union all select 'synthetic', * from synthetic"
    )
    con.execute(
        "create or replace table persons as select distinct cohort, person_id from rows"
    )


def draw(con, **changes):
    profile = dataclasses.replace(PROFILES["smoke"], **changes)
    return draw_persons(con, "persons", "person_id", "synthetic", profile)


def tv(_, counts):
    return total_variation(counts)


def kind_interval(con, distance=tv, within="'all'", least=1, **changes):
    draws = draw(con, **changes)
    return draws.interval(draws.cells("rows", "kind", within=within), least, distance)


def by_person(rows: dict) -> np.ndarray:
    """Rows of each person by kind: (persons, KINDS)."""
    counts = np.zeros((rows["person_id"].max() + 1, KINDS))
    np.add.at(counts, (rows["person_id"], rows["kind"]), 1)
    return counts


@pytest.mark.parametrize("most_groups", [10_000, 150])
def test_ends_are_those_of_scipy_over_persons(con, monkeypatch, most_groups):
    """Of the side to equality the basic interval, of the other the percentile one."""
    monkeypatch.setattr(intervals, "MOST_DRAWS", 3_000)
    monkeypatch.setattr(intervals, "MOST_GROUPS", most_groups)
    monkeypatch.setattr(intervals, "LEAST_GROUPS", 50)
    rng = np.random.default_rng(1)
    other = np.array([0.45, 0.15, 0.1, 0.1, 0.1, 0.1])
    real, ours = histories(rng, 200), histories(rng, 400, other)
    put(con, real, ours)
    low, high = kind_interval(con, bootstraps=3_000)

    counts = by_person(real), by_person(ours)

    def distance(one, other):
        sides = [side[drawn].sum(axis=0) for side, drawn in zip(counts, (one, other))]
        shares = [side / side.sum() for side in sides]
        return np.abs(shares[0] - shares[1]).sum() / 2

    persons = tuple(np.arange(len(side)) for side in counts)
    found = {
        method: stats.bootstrap(
            persons, distance, method=method, n_resamples=3_000, vectorized=False,
            random_state=2,
        ).confidence_interval
        for method in ("basic", "percentile")
    }  # fmt: skip
    # three thousand draws of a distance whose standard error is 0.025
    assert low == pytest.approx(found["basic"].low, abs=0.004)
    assert high == pytest.approx(found["percentile"].high, abs=0.004)
    # as if rows were persons, it would be two thirds as wide
    kinds = tuple(side["kind"] for side in (real, ours))
    rows = stats.bootstrap(
        kinds,
        lambda x, y: np.abs(
            np.bincount(x, minlength=KINDS) / len(x)
            - np.bincount(y, minlength=KINDS) / len(y)
        ).sum() / 2,
        method="percentile", n_resamples=500, vectorized=False, random_state=3,
    ).confidence_interval  # fmt: skip
    assert rows.high - rows.low < 0.75 * (high - low)


def test_what_chance_explains_reaches_to_equality(con, monkeypatch):
    """Against a permutation test by hand: persons of both cohorts, shuffled."""
    monkeypatch.setattr(intervals, "MOST_DRAWS", 1_000)
    rng = np.random.default_rng(2)
    seen = []
    for shift in np.linspace(0, 0.15, 7):
        other = EVEN + np.array([shift, -shift, 0, 0, 0, 0])
        real, ours = histories(rng, 100), histories(rng, 150, other)
        put(con, real, ours)
        low, _ = kind_interval(con, bootstraps=1_000)
        both = np.concatenate([by_person(real), by_person(ours)])

        def distance(order, both=both):
            sides = np.array(
                [both[order[:100]].sum(axis=0), both[order[100:]].sum(axis=0)]
            )
            return total_variation(sides)

        value = distance(np.arange(250))
        shuffled = [distance(rng.permutation(250)) for _ in range(1_000)]
        p = np.mean(np.array(shuffled) >= value)
        seen.append(p < 0.025)
        if not 0.01 < p < 0.05:  # the two ways are not one
            assert (low == 0) == (p > 0.025), (shift, p, low)
    assert 2 <= sum(seen) <= 5


def test_bias_of_draws_is_taken_off():
    """In each number of draws 97.5 % are below the upper end."""
    drawn = np.linspace(0.3, 0.5, 201)
    never = np.full(201, 0.1)
    assert interval_of(0.3, 0.0, drawn, never) == pytest.approx((0.105, 0.495))
    # of R² and the like, whose best is 1, the other way round
    found = interval_of(0.7, 1.0, 1 - drawn, 1 - never)
    assert found == pytest.approx((0.505, 0.895))
    # what is as far by chance may be no difference
    chance = np.append(never[:-6], np.full(6, 0.31))
    assert interval_of(0.3, 0.0, drawn, chance) == pytest.approx((0, 0.495))
    assert interval_of(0.7, 1.0, 1 - drawn, 1 - chance) == pytest.approx((0.505, 1))
    few = np.where(np.arange(201) < 19, drawn, np.nan)
    assert interval_of(0.3, 0.0, few, never) == UNKNOWN
    assert interval_of(np.nan, 0.0, drawn, never) == UNKNOWN


TRIALS = 100


@pytest.mark.parametrize(
    ("distance", "groups"), [(tv, 1), (lambda _, n: ks(n), 1), (tv, 8)]
)
def test_cohorts_without_a_fault_are_beyond_no_bound(con, distance, groups):
    """However low the bound: of two halves of one process, 5 % at most are beyond 0.

    The worst of eight small groups is the hardest: it is the largest by chance alone.
    """
    rng = np.random.default_rng(3)
    beyond = 0
    for seed in range(TRIALS):
        put(con, histories(rng, 60, groups=groups), histories(rng, 120, groups=groups))
        low, high = kind_interval(con, distance, "part", seed=seed)
        assert 0 <= low < high
        beyond += low > 0
    assert beyond <= 0.05 * TRIALS


def test_a_true_distance_is_seldom_outside(con):
    """Nor is a cohort beyond the bound that it is as far away as in truth."""
    rng = np.random.default_rng(4)
    other = np.array([0.37, 0.13, 0.125, 0.125, 0.125, 0.125])
    true = np.abs(other - EVEN).sum() / 2
    outside = np.zeros(3)
    for seed in range(TRIALS):
        put(con, histories(rng, 150), histories(rng, 300, other))
        low, high = kind_interval(con, seed=seed)
        outside += low > true, high < true, low > 0
    assert outside[0] <= 0.05 * TRIALS
    assert outside[1] <= 0.05 * TRIALS
    # and it is seen that they differ
    assert outside[2] > 0.9 * TRIALS


def test_pairs_are_counted_by_group():
    rng = np.random.default_rng(5)
    left, right = (rng.random((2, 40, 5)) < 0.4).astype(np.int64)
    groups = rng.integers(0, 7, 40)
    found = pairs_of(groups, *map(sparse.csr_array, (left, right)), 7).toarray()
    for group in range(7):
        rows = groups == group
        by_hand = left[rows].T @ right[rows]
        assert found[group].reshape(5, 5).tolist() == by_hand.tolist()


def test_groups_are_of_whole_persons_and_of_one_size(con, monkeypatch):
    monkeypatch.setattr(intervals, "MOST_GROUPS", 100)
    monkeypatch.setattr(intervals, "LEAST_GROUPS", 20)
    rng = np.random.default_rng(6)
    put(con, histories(rng, 95), histories(rng, 401))
    draws = draw(con)
    # four persons each, not five: of the holdout there would be fewer than twenty
    for groups, size in zip(draws.groups, (95, 401)):
        counts = np.unique(groups, return_counts=True)[1]
        assert len(counts) == -(-size // 4)
        assert set(counts) <= {3, 4}
    assert not set(draws.groups[0]) & set(draws.groups[1])
    real = draws.groups[0].max() + 1
    sums = draws.weights.sum(axis=2)
    ours = draws.weights.shape[2] - real
    assert (sums == np.array([[real], [ours], [real], [ours]])).all()
    assert not draws.weights[0, :, real:].any()
    assert not draws.weights[1, :, :real].any()


def test_a_seed_makes_the_same_and_another_does_not(con):
    rng = np.random.default_rng(7)
    put(con, histories(rng, 60), histories(rng, 90, np.arange(1, 7) / 21))
    found = [kind_interval(con, seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_of_nobody_there_is_no_interval(con):
    rng = np.random.default_rng(8)
    put(con, histories(rng, 60), histories(rng, 90))
    con.execute("delete from persons where cohort = 'synthetic'")
    con.execute("delete from rows where cohort = 'synthetic'")
    assert kind_interval(con) == UNKNOWN
    draws = draw(con)
    # the statistic is not asked
    assert draws.intervals(draws.cells("rows", "kind").counts, None) == {}
    # nor where a group of rows is too small
    put(con, histories(rng, 60), histories(rng, 90))
    assert np.isnan(kind_interval(con, least=10_000)).all()
