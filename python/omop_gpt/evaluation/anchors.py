"""Anchors: cohorts of known worth, to read a metric by and to test the metrics with.

Each is made of real patients, T (cohort `train`) or R1 (cohort `ideal`, itself the
anchor of that name), and poses as synthetic:

    copy           T under new ids: all of it leaks
    near_copy      T, 15 % of events dropped, each person's dates moved by one shift
    leak_10        10 % of T word for word; the rest is R1, over and over
    unigram        T's marginals, each drawn apart from all others
    independent    T's visits; each concept falls on a person by its prevalence alone
    chain          each visit follows on the one before, and knows none before that
    visit_shuffle  R1, each person's visits in another order

The rows of an anchor depend on those of its source and on the seed; not on the order of
rows nor on threads. Where its source is empty, so is the anchor.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from omop_gpt.evaluation.cohorts import IDEAL, SCHEMA, TRAIN

if TYPE_CHECKING:
    import duckdb

PERSONS, VISITS, EVENTS = (
    f"{SCHEMA}.{name}" for name in ("persons", "visits", "events")
)
EPOCH = "date '1970-01-01'"  # arrays hold days since then
DROPPED = 0.15  # events of near_copy
SHIFT = 30  # days at most, of near_copy
LEAKED = 0.1  # persons of leak_10


def make_anchors(
    con: duckdb.DuckDBPyConnection, names: Iterable[str], seed: int
) -> None:
    """Append anchors to `evaluation_private.{persons,visits,events}`.

    `ideal` is there already and is left as it is. Raises KeyError where a name is none
    of an anchor.
    """
    for name in names:
        if name != "ideal":
            # a source of chance of its own, whichever others are made
            rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
            BUILDERS[name](con, rng)
            con.execute("drop table if exists numbered_visits")
            con.execute("drop table if exists items")
            con.unregister("drawn")


def copy(con: duckdb.DuckDBPyConnection, rng: np.random.Generator) -> None:
    """Append T in an order of chance, numbered from 1."""
    persons = persons_of(con, TRAIN)
    append_histories(con, "copy", TRAIN, persons, permuted_ids(rng, persons))


def near_copy(con: duckdb.DuckDBPyConnection, rng: np.random.Generator) -> None:
    """Append T with events dropped by chance, and one shift a person, in whole days.

    Events that are equal in all stay or go together.
    """
    persons = persons_of(con, TRAIN)
    # a hash, for the rows of a table have no order to draw in
    chance = f"""
        md5_number_upper(concat_ws(
            ':', '{rng.integers(2**63)}', person_id, visit_order, source_table,
            concept_id, event_date, value_as_number
        ))
    """
    append_histories(
        con,
        "near_copy",
        TRAIN,
        persons,
        permuted_ids(rng, persons),
        shift=rng.integers(-SHIFT, SHIFT, len(persons), endpoint=True),
        events=f"{chance} >= {round(DROPPED * 2**64)}",
    )


def leak_10(con: duckdb.DuckDBPyConnection, rng: np.random.Generator) -> None:
    """Append 10 % of T as they are, and R1 until there are as many persons as in T."""
    persons, ideal = persons_of(con, TRAIN), persons_of(con, IDEAL)
    if len(ideal) == 0:
        return
    new_ids, leaked = permuted_ids(rng, persons), round(LEAKED * len(persons))
    append_histories(
        con, "leak_10", TRAIN, rng.permutation(persons)[:leaked], new_ids[:leaked]
    )
    others = np.resize(rng.permutation(ideal), len(persons) - leaked)  # it repeats
    append_histories(con, "leak_10", "ideal", others, new_ids[leaked:])


def unigram(con: duckdb.DuckDBPyConnection, rng: np.random.Generator) -> None:
    """Append as many persons as T has, each thing of them drawn apart from all others.

    Permuted, so that T's marginals stay to the row: demographics with the death, visits
    a person, first date, gaps from start to start, type with stay, events a visit;
    loose events a person and their dates. Drawn, from T's events: source table,
    concept, value and unit as one. Events are on the day that their visit starts. As
    nothing knows of anything else, patients may have visits before their birth or after
    their death.
    """
    persons = persons_of(con, TRAIN)
    sources, deck = number_visits(con, TRAIN), number_items(con)
    append_histories(
        con,
        "unigram",
        TRAIN,
        persons,
        permuted_ids(rng, persons),
        visits="false",
        events="false",
    )
    new_ids = np.arange(1, len(persons) + 1)
    visits = rng.permutation(count_by(persons, sources["person_id"]))
    person_id, visit_order = np.repeat(new_ids, visits), within(visits)

    # a first date where a history opens, gaps after it: their sums are the dates
    is_first, steps = sources["is_first"], np.diff(sources["start"], prepend=0)
    start = np.empty(len(steps), np.int64)
    start[visit_order == 1] = rng.permutation(sources["start"][is_first])
    start[visit_order > 1] = rng.permutation(steps[~is_first])
    sums = np.cumsum(start)
    start = sums - np.repeat((sums - start)[visit_order == 1], visits[visits > 0])
    append_visits(
        con,
        "unigram",
        person_id=person_id,
        visit_order=visit_order,
        source=rng.permutation(len(steps)),
        start=start,
    )

    sizes = con.execute(
        f"""
        select count(events.person_id) as events
        from numbered_visits
        left join {EVENTS} as events using (cohort, person_id, visit_order)
        group by numbered_visits.visit
        order by numbered_visits.visit
        """
    ).fetchnumpy()["events"]
    sizes = rng.permutation(sizes)
    loose = con.execute(
        f"""
        select person_id, event_date - {EPOCH} as day
        from {EVENTS}
        where cohort = 'train' and visit_order is null
        order by person_id, event_date
        """
    ).fetchnumpy()
    loose_id = np.repeat(
        new_ids, rng.permutation(count_by(persons, loose["person_id"]))
    )
    append_items(
        con,
        "unigram",
        person_id=np.concatenate([np.repeat(person_id, sizes), loose_id]),
        visit_order=np.concatenate([np.repeat(visit_order, sizes), 0 * loose_id]),
        day=np.concatenate([np.repeat(start, sizes), rng.permutation(loose["day"])]),
        item=deck[pick(rng, np.full(len(deck), len(deck)))],
    )


def independent(con: duckdb.DuckDBPyConnection, rng: np.random.Generator) -> None:
    """Append T's persons and visits, with events that know of neither.

    Each concept falls on each person who has visits by chance, as often as T's persons
    have it; on a visit of theirs by chance, on its first day, once; its value and unit
    are those of a row of T with this concept.
    """
    persons, deck = persons_of(con, TRAIN), number_items(con)
    append_histories(
        con,
        "independent",
        TRAIN,
        persons,
        permuted_ids(rng, persons),
        events="false",
    )
    visits = number_visits(con, "independent")
    concepts = con.execute(
        f"""
        select count(distinct person_id) as persons, count(*) as rows
        from {EVENTS}
        where cohort = 'train'
        group by source_table, concept_id
        order by source_table, concept_id
        """
    ).fetchnumpy()
    rows, first = concepts["rows"], np.flatnonzero(visits["is_first"])
    visits_of = np.diff(first, append=len(visits["is_first"]))
    # how many is binomial, who they are a subset by chance: together that is Bernoulli
    hits = rng.binomial(
        len(first), np.minimum(concepts["persons"] / max(len(first), 1), 1)
    )
    subsets = [rng.choice(len(first), n, replace=False, shuffle=False) for n in hits]
    person = np.concatenate([np.empty(0, np.int64), *subsets])
    visit = first[person] + pick(rng, visits_of[person])
    row = np.repeat(np.cumsum(rows) - rows, hits) + pick(rng, np.repeat(rows, hits))
    append_items(
        con,
        "independent",
        person_id=visits["person_id"][visit],
        visit_order=visits["visit_order"][visit],
        day=visits["start"][visit],
        item=deck[row],
    )


def chain(con: duckdb.DuckDBPyConnection, rng: np.random.Generator) -> None:
    """Append as many persons as T has, each a chain of T's visits.

    It opens with a first visit of T. Then a concept of the visit is drawn, and a visit
    of T that has it: what came after that one comes next (gap, type, stay, events), or,
    where it was its person's last, the end, with the death if there was one. Visits
    without events share that with each other. No chain is longer than T's longest
    history. Sex, race, ethnicity and age at the first visit are those of some person of
    T. Loose events belong to no visit, and there are none.
    """
    size = len(persons_of(con, TRAIN))
    sources = number_visits(con, TRAIN)
    openings = np.flatnonzero(sources["is_first"])
    if len(openings) == 0:
        return
    concepts_of, visits_with = shared_concepts(con)
    is_last = np.roll(sources["is_first"], -1)
    longest = np.diff(openings, append=len(is_last)).max()

    person_id, visit = np.arange(1, size + 1), rng.choice(openings, size)
    day = sources["start"][visit]
    links, ends = [(person_id, visit, day)], []
    while len(links) < longest and len(person_id):
        twin = visits_with.draw(rng, concepts_of.draw(rng, visit))
        over = is_last[twin]
        ends.append((person_id[over], twin[over], day[over]))
        person_id, twin, day = person_id[~over], twin[~over], day[~over]
        visit = twin + 1
        day = day + sources["start"][visit] - sources["start"][twin]
        links.append((person_id, visit, day))

    lengths = [len(ids) for ids, _, _ in links]
    ids, visits, days = (np.concatenate(column) for column in zip(*links, strict=True))
    append_visits(
        con,
        "chain",
        person_id=ids,
        visit_order=np.repeat(np.arange(1, len(links) + 1), lengths),
        source=visits,
        start=days,
        with_events=True,
    )
    last, last_day = np.full(size, -1), np.zeros(size, np.int64)
    for ids, visits, days in ends:
        last[ids - 1], last_day[ids - 1] = visits, days
    lend(
        con,
        person_id=np.arange(1, size + 1),
        first_day=links[0][2],
        opening=rng.choice(openings, size),
        last=last,
        last_day=last_day,
    )
    con.execute(
        f"""
        insert into {PERSONS} by name
        with
        persons as (
            select visits.visit, visits.visit_start_date, persons.*
            from numbered_visits as visits
            inner join {PERSONS} as persons using (cohort, person_id)
        )

        select
            'chain' as cohort,
            drawn.person_id,
            openings.gender_concept_id,
            openings.race_concept_id,
            openings.ethnicity_concept_id,
            openings.year_of_birth
            + year({EPOCH} + cast(drawn.first_day as int))
            - year(openings.visit_start_date) as year_of_birth,
            endings.death_date + cast(
                {EPOCH} + cast(drawn.last_day as int) - endings.visit_start_date as int
            ) as death_date
        from drawn
        inner join persons as openings on drawn.opening = openings.visit
        left join persons as endings on drawn.last = endings.visit
        """
    )


def visit_shuffle(con: duckdb.DuckDBPyConnection, rng: np.random.Generator) -> None:
    """Append R1, what its visits hold (type, stay, events) permuted within each person.

    The dates on which visits start stay; loose events stay as they are.
    """
    persons, visits = persons_of(con, IDEAL), number_visits(con, IDEAL)
    append_histories(
        con,
        "visit_shuffle",
        "ideal",
        persons,
        persons,
        visits="false",
        events="visit_order is null",
    )
    append_visits(
        con,
        "visit_shuffle",
        person_id=visits["person_id"],
        visit_order=visits["visit_order"],
        source=np.lexsort([rng.random(len(visits["start"])), visits["person_id"]]),
        start=visits["start"],
        with_events=True,
    )


BUILDERS = {
    "copy": copy,
    "near_copy": near_copy,
    "leak_10": leak_10,
    "unigram": unigram,
    "independent": independent,
    "chain": chain,
    "visit_shuffle": visit_shuffle,
}


def persons_of(con: duckdb.DuckDBPyConnection, cohort: str) -> np.ndarray:
    """Return the ids of a cohort's persons: (P,) int64, ascending."""
    return con.execute(
        f"select person_id from {PERSONS} where cohort = ? order by person_id", [cohort]
    ).fetchnumpy()["person_id"]


def number_visits(con: duckdb.DuckDBPyConnection, cohort: str) -> dict[str, np.ndarray]:
    """Make the temporary table `numbered_visits`: a cohort's visits, numbered from 0.

    They are in order of person and visit. Returns, for each (V,): person_id,
    visit_order, start (days) int64, is_first bool.
    """
    con.execute(
        f"""
        create or replace temp table numbered_visits as
        select *, row_number() over (order by person_id, visit_order) - 1 as visit
        from {VISITS}
        where cohort = '{cohort}'
        """
    )
    found = con.execute(
        f"""
        select person_id, visit_order, visit_start_date - {EPOCH} as start
        from numbered_visits
        order by visit
        """
    ).fetchnumpy()
    persons = found["person_id"]
    return {
        **found,
        "is_first": np.append([True], np.diff(persons) > 0)[: len(persons)],
    }


def number_items(con: duckdb.DuckDBPyConnection) -> np.ndarray:
    """Make the temporary table `items`: what T's events are, apart from whose and when.

    Items (source table, concept, value, unit) are numbered from 0, those of a concept
    together. Returns the item of each of T's events: (E,) int64, ascending.
    """
    con.execute(
        f"""
        create or replace temp table items as
        select
            source_table, concept_id, value_as_number, unit_concept_id,
            count(*) as rows,
            row_number() over (
                order by source_table, concept_id, unit_concept_id, value_as_number
            ) - 1 as item
        from {EVENTS}
        where cohort = 'train'
        group by source_table, concept_id, value_as_number, unit_concept_id
        """
    )
    rows = con.execute("select rows from items order by item").fetchnumpy()["rows"]
    return np.repeat(np.arange(len(rows)), rows)


class Lists:
    """Lists of numbers, one for each key 0, 1, …, to draw from."""

    def __init__(self, keys: np.ndarray, values: np.ndarray) -> None:
        """`keys` ascending and `values`: (N,) int."""
        self.counts = np.bincount(keys)
        self.firsts = np.cumsum(self.counts) - self.counts
        self.values = values

    def draw(self, rng: np.random.Generator, keys: np.ndarray) -> np.ndarray:
        """Draw a number from the list of each key: (K,) int. None may be empty."""
        return self.values[self.firsts[keys] + pick(rng, self.counts[keys])]


def shared_concepts(con: duckdb.DuckDBPyConnection) -> tuple[Lists, Lists]:
    """Return the concepts of each numbered visit of T, and the visits of each concept.

    Concepts are numbered from 1; 0 is what visits without events have.
    """
    found = con.execute(
        f"""
        with
        concepts as (
            select
                source_table, concept_id,
                row_number() over (order by source_table, concept_id) as concept
            from {EVENTS}
            where cohort = 'train'
            group by source_table, concept_id
        ),

        events as (
            select events.cohort, events.person_id, events.visit_order, concepts.concept
            from {EVENTS} as events
            inner join concepts using (source_table, concept_id)
        )

        select visits.visit, coalesce(events.concept, 0) as concept
        from numbered_visits as visits
        left join events using (cohort, person_id, visit_order)
        """
    ).fetchnumpy()
    base = found["concept"].max() + 1
    pairs = np.unique(found["visit"] * base + found["concept"])
    visits, concepts = np.divmod(pairs, base)
    order = np.argsort(concepts, kind="stable")
    return Lists(visits, concepts), Lists(concepts[order], visits[order])


def append_histories(
    con: duckdb.DuckDBPyConnection,
    name: str,
    cohort: str,
    person_id: np.ndarray,
    new_id: np.ndarray,
    *,
    shift: np.ndarray | None = None,
    visits: str = "true",
    events: str = "true",
) -> None:
    """Append histories of a cohort under new ids, dates moved by `shift` days.

    `person_id`, `new_id`, `shift`: (P,) int; `visits`, `events`: SQL, rows to take.
    """
    lend(
        con,
        source_id=person_id,
        new_id=new_id,
        shift=np.zeros(len(new_id), np.int32) if shift is None else shift,
    )
    for table, condition, dates in (
        (PERSONS, "true", ("death_date",)),
        (VISITS, visits, ("visit_start_date", "visit_end_date")),
        (EVENTS, events, ("event_date",)),
    ):
        moved = [f"{day} + cast(drawn.shift as int) as {day}" for day in dates]
        con.execute(
            f"""
            insert into {table} by name
            select histories.* replace (
                '{name}' as cohort, drawn.new_id as person_id, {", ".join(moved)}
            )
            from {table} as histories
            inner join drawn on histories.person_id = drawn.source_id
            where histories.cohort = '{cohort}' and {condition}
            """
        )


def append_visits(
    con: duckdb.DuckDBPyConnection,
    name: str,
    *,
    person_id: np.ndarray,
    visit_order: np.ndarray,
    source: np.ndarray,
    start: np.ndarray,
    with_events: bool = False,
) -> None:
    """Append visits with the type and the stay, and maybe the events, of numbered ones.

    All (V,) int; `source`: `numbered_visits.visit`, `start`: days.
    """
    lend(con, person_id=person_id, visit_order=visit_order, source=source, start=start)
    start_date = f"{EPOCH} + cast(drawn.start as int)"
    shift = f"cast({start_date} - visits.visit_start_date as int)"
    con.execute(
        f"""
        insert into {VISITS} by name
        select
            '{name}' as cohort,
            drawn.person_id,
            drawn.visit_order,
            visits.visit_concept_id,
            {start_date} as visit_start_date,
            visits.visit_end_date + {shift} as visit_end_date
        from drawn
        inner join numbered_visits as visits on drawn.source = visits.visit
        """
    )
    if with_events:
        con.execute(
            f"""
            insert into {EVENTS} by name
            select events.* replace (
                '{name}' as cohort,
                drawn.person_id as person_id,
                drawn.visit_order as visit_order,
                events.event_date + {shift} as event_date
            )
            from drawn
            inner join numbered_visits as visits on drawn.source = visits.visit
            inner join {EVENTS} as events
                on
                    visits.cohort = events.cohort
                    and visits.person_id = events.person_id
                    and visits.visit_order = events.visit_order
            """
        )


def append_items(
    con: duckdb.DuckDBPyConnection,
    name: str,
    *,
    person_id: np.ndarray,
    visit_order: np.ndarray,
    day: np.ndarray,
    item: np.ndarray,
) -> None:
    """Append events that are items of T. All (E,) int; `visit_order` 0: of no visit."""
    lend(con, person_id=person_id, visit_order=visit_order, day=day, item=item)
    con.execute(
        f"""
        insert into {EVENTS} by name
        select
            '{name}' as cohort,
            drawn.person_id,
            nullif(drawn.visit_order, 0) as visit_order,
            items.source_table,
            items.concept_id,
            {EPOCH} + cast(drawn.day as int) as event_date,
            items.value_as_number,
            items.unit_concept_id
        from drawn
        inner join items using (item)
        """
    )


def lend(con: duckdb.DuckDBPyConnection, **columns: np.ndarray) -> None:
    """Let SQL read arrays as columns of `drawn`."""
    con.register("drawn", pa.table(columns))


def permuted_ids(rng: np.random.Generator, persons: np.ndarray) -> np.ndarray:
    """Return an id for each person, from 1, in an order of chance."""
    return rng.permutation(len(persons)) + 1


def count_by(persons: np.ndarray, person_id: np.ndarray) -> np.ndarray:
    """Count rows by person: (P,) int64; persons ascending."""
    return np.bincount(np.searchsorted(persons, person_id), minlength=len(persons))


def within(counts: np.ndarray) -> np.ndarray:
    """Return numbers from 1 to each count, one after the other."""
    opening = np.repeat(np.cumsum(counts) - counts, counts)
    return np.arange(1, len(opening) + 1) - opening


def pick(rng: np.random.Generator, counts: np.ndarray) -> np.ndarray:
    """Draw a number from 0 below each count."""
    return (rng.random(len(counts)) * counts).astype(np.int64)
