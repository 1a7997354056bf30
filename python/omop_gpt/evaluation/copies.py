"""What a release repeats of real histories: whole ones, and runs of words.

A run that many persons share is no copy: the holdout, whom no model saw, tells how much
is found by chance in as many persons. Knows the three tables and mart exact_copies.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from omop_gpt.evaluation.cohorts import HOLDOUT, TRAIN
from omop_gpt.evaluation.neighbours import ORDER

if TYPE_CHECKING:
    import duckdb

    from omop_gpt.evaluation.results import Results

LEAST_EVENTS = 10  # of a history that is no copy by chance
LENGTHS = (4, 8, 12, 16, 24, 32, 48, 64)  # of runs, in words
RUN = 12
RUN_PERSONS = 20_000  # of the release, whose runs are looked for
LONGEST_PERSONS = 2_000  # of those, whose longest run is looked for
LONGEST_SHARE = 0.01  # of persons that have a run as long as the one that is reported
FACTOR = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64


def measure_exact_copies(
    con: duckdb.DuckDBPyConnection, candidate: str, results: Results
) -> None:
    """Count histories that equal a real one: exact_copy_share, exact_copy_excess.

    Of persons with ten events or more. What equals a person of the holdout, brought to
    the size of the training, is chance.
    """
    sizes = dict(
        con.execute(
            "select cohort, count(*) from evaluation_private.history_keys "
            "where event_count >= ? group by 1",
            [LEAST_EVENTS],
        ).fetchall()
    )
    of_train, of_holdout = con.execute(
        "select count(distinct person_id) filter (original_cohort = $2), "
        "count(distinct person_id) filter (original_cohort = $3) "
        "from evaluation_private.exact_copies where cohort = $1",
        [candidate, TRAIN, HOLDOUT],
    ).fetchone()
    persons = sizes.get(candidate, 0)
    train, holdout = (sizes.get(name, 0) for name in (TRAIN, HOLDOUT))
    found = rate_of(of_train, persons if train else 0)
    low, high = found[1:]
    results.add(
        "exact_copy_share", candidate, found[0], ci_low=low, ci_high=high, n=persons
    )
    chance = rate_of(of_holdout, persons if holdout else 0)
    scale = train / holdout if holdout else np.nan
    value, low, high = combined(lambda rate, other: rate - scale * other, found, chance)
    results.add(
        "exact_copy_excess", candidate, value, ci_low=low, ci_high=high, n=persons
    )


Rate = tuple[float, float, float]  # and the ends of its interval


def rate_of(hits: float, trials: int) -> Rate:
    """Share of trials that hit, with the 95 % interval of Wilson (1927)."""
    if not trials:
        return np.nan, np.nan, np.nan
    z2 = stats.norm.ppf(0.975) ** 2
    share = hits / trials
    middle = (hits + z2 / 2) / (trials + z2)
    half = np.sqrt(z2 * (share * (1 - share) + z2 / (4 * trials)) * trials)
    half /= trials + z2
    return share, max(middle - half, 0.0), min(middle + half, 1.0)


def combined(
    function: Callable[[float, float], float], first: Rate, second: Rate
) -> Rate:
    """Value and 95 % interval of a function: up with one rate, down with the other.

    From the intervals of the rates, which are independent: the method of variance
    estimates recovery (Zou and Donner, 2008).
    """
    value = function(first[0], second[0])
    low = np.hypot(
        value - function(first[1], second[0]), value - function(first[0], second[2])
    )
    high = np.hypot(
        value - function(first[2], second[0]), value - function(first[0], second[1])
    )
    return value, value - low, value + high


@dataclass(frozen=True)
class Words:
    """The histories of a cohort as words, person by person, in an order of chance.

    `persons`: (W,) int32, from 0, whose word it is. `totals`: (W + 1,) uint64, sums of
    the words' hashes, each times a power of 1 / FACTOR modulo 2^64, so that any run is
    hashed by one subtraction (Karp and Rabin, 1987).
    """

    persons: np.ndarray
    totals: np.ndarray
    count: int  # of persons, those without words too

    def starts(self, length: int) -> np.ndarray:
        """Where runs of so many words of one person start: (R,)."""
        if len(self.persons) < length:
            return np.empty(0, dtype=np.int64)
        last = self.persons[length - 1 :]
        return np.flatnonzero(self.persons[: len(last)] == last)

    def runs(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Hash the runs that start there: (R,) uint64."""
        sums = self.totals[starts + length] - self.totals[starts]
        return sums * powers_of(FACTOR, len(self.persons) + 1)[starts]


@functools.lru_cache(maxsize=8)
def powers_of(factor: int, count: int) -> np.ndarray:
    """Powers of an odd number modulo 2^64, from the zeroth: (count,) uint64."""
    powers = np.full(count, factor, dtype=np.uint64)
    powers[:1] = 1
    return np.multiply.accumulate(powers)


def words_of(con: duckdb.DuckDBPyConnection, cohort: str, most: int) -> Words:
    """Read a cohort's words, of at most so many persons.

    Of each visit: the weeks since the one before (a year or more is one word), its
    type, and its concepts, each once, by table and id. Events of no visit come first.
    """
    found = con.execute(
        f"""
        with
        persons as (
            select person_id, row_number() over (order by {ORDER}) - 1 as person
            from evaluation_private.persons
            where cohort = $1
        ),
        visits as (
            select
                person,
                visit_order,
                visit_concept_id,
                visit_start_date - lag(visit_start_date) over (
                    partition by person order by visit_order
                ) as days
            from evaluation_private.visits
            inner join persons using (person_id)
            where cohort = $1 and person < $2
        ),
        words as (
            select
                person,
                visit_order,
                0 as kind,
                '' as name,
                case when days is not null then least(days // 7, 52) end as word
            from visits
            union all
            select person, visit_order, 1, '', visit_concept_id from visits
            union all
            select distinct
                person, coalesce(visit_order, 0), 2, source_table, concept_id
            from evaluation_private.events
            inner join persons using (person_id)
            where cohort = $1 and person < $2
        )
        select cast(person as int) as person, hash(kind, name, word) as word
        from words
        order by person, visit_order, kind, name, words.word
        """,
        [cohort, most],
    ).fetchnumpy()
    (count,) = con.execute(
        "select count(*) from evaluation_private.persons where cohort = ?", [cohort]
    ).fetchone()
    words = np.asarray(found["word"]).astype(np.uint64)
    words *= powers_of(pow(FACTOR, -1, 1 << 64), len(words))
    totals = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(words)])
    return Words(np.asarray(found["person"]), totals, min(count, most))


@functools.lru_cache(maxsize=1)
def real_words(con: duckdb.DuckDBPyConnection) -> tuple[Words, Words]:
    """Words of the training and the holdout: the same for every candidate."""
    return words_of(con, TRAIN, 1 << 40), words_of(con, HOLDOUT, 1 << 40)


def measure_runs(
    con: duckdb.DuckDBPyConnection, candidate: str, results: Results
) -> None:
    """Count runs of words that stand in the training, beyond those in the holdout.

    The training is cut into parts of the holdout's size, so that as many persons are
    searched; the interval is of the draw of persons, as the parts differ.

    - ngram_copy_excess: runs of 12 words found in a part (mean) less in the holdout
    - ngram_rare_excess: those that one part alone has, summed over the parts, less what
      the holdout alone has for each part: a copy of any person counts in full
    - ngram_copy_share: those found in the whole training
    - longest_run_p99: words of the longest run that a person of the release has from
      the whole training, of which one in a hundred has longer ones

    Curve ngram_copies: by length of the runs.
    """
    train, holdout = real_words(con)
    release = words_of(con, candidate, RUN_PERSONS)
    size = min(train.count, holdout.count)
    parts = train.count // size if size else 0
    rows = []
    # the parts, what is left of the training, and the holdout
    bounds = [(part * size, (part + 1) * size) for part in range(parts)]
    bounds += [(parts * size, train.count), (0, size)]
    for length in LENGTHS:
        runs, counts = np.unique(
            release.runs(release.starts(length), length), return_counts=True
        )
        found = np.zeros((len(bounds), len(runs)), dtype=bool)
        for words, these in ((train, slice(0, -1)), (holdout, slice(-1, None))):
            starts = words.starts(length)
            hashes, persons = words.runs(starts, length), words.persons[starts]
            for row, ends in zip(found[these], bounds[these]):
                low, high = np.searchsorted(persons, ends)
                mark(row, runs, hashes[low:high])
        total = counts.sum()
        none = not (total and parts)
        shares = np.full(len(bounds), np.nan) if none else found @ counts / total
        whole = np.nan if none else found[:-1].any(axis=0) @ counts / total
        rows.append(
            {
                "cohort": candidate,
                "length": length,
                "share_train": float(np.mean(shares[:parts])) if parts else np.nan,
                "share_holdout": float(shares[-1]),
                "share_train_whole": float(whole),
            }
        )
        if length == RUN:
            alone = np.delete(found, parts, axis=0)
            alone &= alone.sum(axis=0) == 1
            own = np.full(len(alone), np.nan) if none else alone @ counts / total
            for name, these, times in (
                ("ngram_copy_excess", np.delete(shares, parts), 1),
                ("ngram_rare_excess", own, parts),
            ):
                value, low, high = beyond(these[:-1], these[-1])
                results.add(
                    name, candidate, times * value, ci_low=times * low,
                    ci_high=times * high, n=release.count,
                )  # fmt: skip
            results.add("ngram_copy_share", candidate, whole, n=release.count)
    results.draw("ngram_copies", rows)
    longest = longest_run(release, train) if release.count and parts else np.nan
    results.add("longest_run_p99", candidate, longest, n=release.count)


def mark(found: np.ndarray, runs: np.ndarray, others: np.ndarray) -> None:
    """Mark which of `runs`, ascending, are among others."""
    others = np.sort(others)  # near places are looked up one after the other
    places = np.searchsorted(runs, others)
    inside = places < len(runs)
    places, others = places[inside], others[inside]
    found[places[runs[places] == others]] = True


def beyond(parts: np.ndarray, other: float) -> Rate:
    """Mean of the parts less another of their kind, with a 95 % interval."""
    count = len(parts)
    if not count:
        return np.nan, np.nan, np.nan
    value = float(np.mean(parts) - other)
    if count < 2:
        return value, np.nan, np.nan
    half = np.std(parts, ddof=1) * np.sqrt(1 + 1 / count)
    half *= stats.t.ppf(0.975, count - 1)
    return value, value - half, value + half


def longest_run(release: Words, train: Words) -> int:
    """Longest length of which LONGEST_SHARE of the persons share a run with training.

    Runs that share more words begin where runs that share fewer do, so that ever fewer
    places are looked at.
    """
    persons = min(release.count, LONGEST_PERSONS)
    needed = max(int(np.ceil(LONGEST_SHARE * persons)), 1)

    def shared(
        starts: tuple[np.ndarray, np.ndarray], length: int
    ) -> tuple[np.ndarray, np.ndarray] | None:
        places, hashes = [], []
        for words, some in zip((release, train), starts):
            ends = some + length - 1
            inside = ends < len(words.persons)
            some, ends = some[inside], ends[inside]
            some = some[words.persons[some] == words.persons[ends]]
            places.append(some)
            hashes.append(words.runs(some, length))
        known = np.sort(hashes[0])
        known = known[np.diff(known, prepend=known[:1] ^ np.uint64(1)) != 0]
        is_found = np.zeros(len(known), dtype=bool)
        mark(is_found, known, hashes[1])
        known = known[is_found]
        kept = tuple(
            some[is_among(codes, known)] for some, codes in zip(places, hashes)
        )
        having = np.count_nonzero(np.bincount(release.persons[kept[0]]))
        return kept if having >= needed else None

    low, high = 0, RUN
    words = np.searchsorted(release.persons, persons)
    starts = np.arange(words), train.starts(1)
    while (kept := shared(starts, high)) is not None:
        low, high, starts = high, 2 * high, kept
    while high - low > 1:
        middle = (low + high) // 2
        if (kept := shared(starts, middle)) is None:
            high = middle
        else:
            low, starts = middle, kept
    return low


def is_among(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Tell which values are among the known, which ascend."""
    if not len(known):
        return np.zeros(len(values), dtype=bool)
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return known[places] == values
