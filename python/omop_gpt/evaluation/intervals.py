"""95 % intervals of numbers that compare two cohorts, by drawing persons anew.

Rows of one person are not independent, so whole persons are drawn, of both cohorts. A
distance between two samples is never below 0, so it is too large by chance, and is so
once more in each draw: the usual percentile interval of it would leave out what is
true. Here is told which distance chance explains at these sizes. Knows nothing of what
the numbers mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from scipy import sparse

from omop_gpt.evaluation.cohorts import HOLDOUT
from omop_gpt.evaluation.results import UNKNOWN

if TYPE_CHECKING:
    import duckdb

    from omop_gpt.evaluation.results import Profile

MOST_DRAWS = 200  # more move the ends of an interval by less than its own doubt
MOST_GROUPS = 2_000  # of persons, of both cohorts; more are not needed for a spread
LEAST_GROUPS = 100  # of each cohort, where it has as many persons
LEAST_DRAWS = 20  # that have a value
TAIL = 0.025  # beyond each end of an interval
AT_ONCE = 50  # draws in memory

Distance = Callable[[np.ndarray, np.ndarray], float]  # of keys (n,), counts (2, n)


@dataclass(frozen=True, kw_only=True)
class Cells:
    """How many rows of each group of persons are in which cell.

    `strata`, `keys`: (cells,), in order; `counts`: (groups, cells), sparse.
    """

    strata: np.ndarray
    keys: np.ndarray
    counts: sparse.csr_array

    def slices(self) -> Iterator[slice]:
        """Yield which cells are of each stratum."""
        changes = np.flatnonzero(self.strata[1:] != self.strata[:-1]) + 1
        for start, stop in pairwise([0, *changes, len(self.strata)]):
            yield slice(start, stop)

    def combined(
        self,
        counts: np.ndarray,
        least: int,
        distance: Distance,
        combine: Callable[[list[float]], float] = max,
    ) -> float:
        """Combine distances of the strata that have `least` rows on both sides.

        `counts`: (2, cells). NaN where there is no distance to combine.
        """
        found = []
        for cells in self.slices():
            part = counts[:, cells]
            if part.sum(axis=1).min() >= least:
                found.append(distance(self.keys[cells], part))
        found = [value for value in found if not np.isnan(value)]
        return float(combine(found)) if found else np.nan


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Groups of persons of the holdout and of a candidate, drawn again and again.

    `con` has them as `person_groups`. `key`: the column of a person; `persons`: of each
    cohort, ascending; `groups`: the group of each, the candidate's after the holdout's.
    `weights`: how often each group is in a draw, (4, draws, groups): the holdout drawn
    from the holdout, the candidate from the candidate; then both from their union, as
    if they were one population.
    """

    con: duckdb.DuckDBPyConnection
    key: str
    persons: tuple[np.ndarray, np.ndarray]
    groups: tuple[np.ndarray, np.ndarray]
    weights: np.ndarray

    def cells(
        self, rows: str, key: str, weight: str = "count(*)", within: str = "'all'"
    ) -> Cells:
        """Count `rows` (SQL: a table, or a query in brackets) by group and cell."""
        query = f"""
            with cells as (
                select
                    group_number, coalesce(cast({within} as varchar), '') as stratum,
                    {key} as key,
                    cast({weight} as double) as number
                from {rows}
                inner join person_groups using (cohort, {self.key})
                group by 1, 2, 3
            )
            select
                *, dense_rank() over (order by stratum, key) - 1 as cell
            from cells
            order by cell, group_number
        """
        found = self.con.execute(query).fetchnumpy()
        cell = np.asarray(found["cell"])
        firsts = np.flatnonzero(np.diff(cell, prepend=-1))
        place = found["group_number"], cell
        shape = (self.weights.shape[2], len(firsts))
        return Cells(
            strata=np.asarray(found["stratum"])[firsts],
            keys=np.asarray(found["key"])[firsts],
            counts=sparse.csr_array((found["number"], place), shape=shape),
        )

    def group_of(self, side: int, persons: np.ndarray) -> np.ndarray:
        """Return the group of each of `persons` of the holdout (0) or candidate (1)."""
        return self.groups[side][np.searchsorted(self.persons[side], persons)]

    def beside(self, counts: sparse.csr_array, groups: np.ndarray) -> sparse.csr_array:
        """Put how often each group is in `groups` before its (groups, cells) counts."""
        size = np.bincount(groups, minlength=counts.shape[0])[:, None]
        return sparse.hstack([size.astype(counts.dtype), counts], format="csr")

    @property
    def whole(self) -> np.ndarray:
        """What makes the cohorts as they are of the groups: (2, groups)."""
        number = np.arange(self.weights.shape[2])
        is_real = number < self.groups[0].max(initial=-1) + 1
        return np.stack([is_real, ~is_real]).astype(float)

    def interval(
        self,
        cells: Cells,
        least: int,
        distance: Distance,
        combine: Callable[[list[float]], float] = max,
    ) -> tuple[float, float]:
        """Return the 95 % interval of a number that `cells` make; see `combined`."""
        found = self.intervals(
            cells.counts, lambda n: {"it": cells.combined(n, least, distance, combine)}
        )
        return found.get("it", UNKNOWN)

    def intervals(
        self,
        counts: sparse.csr_array,
        statistic: Callable[[np.ndarray], dict[str, float]],
    ) -> dict[str, tuple[float, float]]:
        """Return the 95 % interval of each number of a statistic; see `interval_of`.

        `counts`: (groups, cells); the statistic is of those of holdout and candidate,
        (2, cells), and may be NaN. Nothing where one of them has no persons.
        """
        if not all(len(persons) for persons in self.persons):
            return {}
        whole = weighted(self.whole, counts)
        values, equal = statistic(whole), statistic(whole[[0, 0]])
        samples: tuple[list, list] = [], []
        for start in range(0, self.weights.shape[1], AT_ONCE):
            part = self.weights[:, start : start + AT_ONCE]
            drawn = weighted(part.reshape(-1, part.shape[2]), counts)
            drawn = drawn.reshape(2, 2, part.shape[1], -1)
            for found, sides in zip(samples, drawn):
                found += [statistic(pair) for pair in sides.swapaxes(0, 1)]
        return {
            name: interval_of(
                value,
                equal[name],
                *(np.array([one[name] for one in found]) for found in samples),
            )
            for name, value in values.items()
        }


def draw_persons(
    con: duckdb.DuckDBPyConnection,
    table: str,
    key: str,
    candidate: str,
    profile: Profile,
) -> Draws:
    """Draw persons of `table` of the holdout and of `candidate`.

    `key`: column of the person. Where there are many, groups of persons stand for them:
    chosen by chance, all of one size or one person more, so that a draw of groups is a
    draw of as many persons, and the spread of a sum over groups is that over persons.
    """
    rng = np.random.default_rng(profile.seed)
    query = f"select {key} from {table} where cohort = ? order by {key}"
    persons = tuple(
        np.asarray(con.execute(query, [cohort]).fetchnumpy()[key])
        for cohort in (HOLDOUT, candidate)
    )
    sizes = [len(ids) for ids in persons]
    each = max(1, min(-(-sum(sizes) // MOST_GROUPS), min(sizes) // LEAST_GROUPS))
    numbers = [-(-size // each) for size in sizes]
    groups = tuple(
        rng.permutation(size) % max(number, 1) + first
        for size, number, first in zip(sizes, numbers, (0, numbers[0]))
    )
    draws = min(profile.bootstraps, MOST_DRAWS)
    weights = np.zeros((4, draws, sum(numbers)))
    if min(numbers):
        real, ours = (np.full(number, 1 / number) for number in numbers)
        weights[0, :, : numbers[0]] = rng.multinomial(numbers[0], real, draws)
        weights[1, :, numbers[0] :] = rng.multinomial(numbers[1], ours, draws)
        both = np.full(sum(numbers), 1 / sum(numbers))
        for side, number in enumerate(numbers, start=2):
            weights[side] = rng.multinomial(number, both, draws)
    columns = {
        "cohort": np.repeat([HOLDOUT, candidate], sizes),
        key: np.concatenate(persons),
        "group_number": np.concatenate(groups),
    }
    con.register("person_groups", pa.table(columns))
    return Draws(con=con, key=key, persons=persons, groups=groups, weights=weights)


def pairs_of(
    groups: np.ndarray, left: sparse.csr_array, right: sparse.csr_array, number: int
) -> sparse.csr_array:
    """Count by group the pairs of a column of `left` and one of `right` in a row.

    `groups`: of each row, (rows,), of `number`; `left`, `right`: (rows, K), 0 or 1.
    Returns (number, K * K), float32: exact up to 16 million.
    """
    size = left.shape[1]
    row, column = left.nonzero()
    shape = (number * size, left.shape[0])
    ones = np.ones(len(row), np.float32)
    spread = sparse.csr_array((ones, (groups[row] * size + column, row)), shape=shape)
    both = (spread @ right.astype(np.float32)).tocoo()
    places = np.divmod(both.row * np.int64(size) + both.col, size * size)
    return sparse.csr_array((both.data, places), shape=(number, size * size))


def weighted(weights: np.ndarray, counts: sparse.csr_array) -> np.ndarray:
    """Sum (groups, cells) `counts` with (draws, groups) weights: (draws, cells)."""
    if counts.nnz * 10 < np.prod(counts.shape, dtype=float):
        return (counts.T @ weights.T).T
    total = np.zeros((len(weights), counts.shape[1]), counts.dtype)
    for start in range(0, counts.shape[0], 256):
        part = slice(start, start + 256)
        total += weights[:, part].astype(counts.dtype) @ counts[part].toarray()
    return total


def interval_of(
    value: float, equal: float, apart: np.ndarray, pooled: np.ndarray
) -> tuple[float, float]:
    """Return the 95 % interval of a number that is `equal` where cohorts are.

    `apart`: that number with both cohorts drawn anew, each from itself; `pooled`: with
    both drawn from their union. By how much drawing makes the distance from `equal`
    larger, at most, in 97.5 % of draws, is how much larger chance may have made it: so
    far the interval reaches to the side of `equal`, where it is the basic bootstrap
    interval (Davison & Hinkley 1997, section 5.2) and mends the bias, and as far to the
    other side, where it is the percentile interval and too wide rather than too narrow.
    Near `equal` a bootstrap is not consistent (Andrews, Econometrica 2000), and there a
    test decides: where cohorts of one population are as far apart in more than 2.5 % of
    draws (Romano, JASA 1988), the interval reaches to `equal`. NaN where fewer than
    LEAST_DRAWS have a value.
    """
    far, drawn, chance = (np.abs(values - equal) for values in (value, apart, pooled))
    drawn, chance = drawn[np.isfinite(drawn)], chance[np.isfinite(chance)]
    if np.isnan(far) or min(len(drawn), len(chance)) < LEAST_DRAWS:
        return UNKNOWN
    reach = max(np.quantile(drawn, 1 - TAIL) - far, 0)
    low, high = max(far - reach, 0), far + reach
    # as far but for the rounding of sums
    as_far = np.count_nonzero(chance >= far * (1 - 1e-9))
    if (1 + as_far) / (1 + len(chance)) > TAIL:
        low = 0
    if value < equal or np.nanmean(apart) < equal:
        low, high = -high, -low
    return float(equal + low), float(equal + high)
