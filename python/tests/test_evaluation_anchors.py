"""Anchors: what each keeps of its source, what it breaks, and that chance is seeded."""

from collections import Counter, defaultdict
from datetime import date, timedelta
from itertools import pairwise

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from omop_gpt.evaluation.anchors import BUILDERS, make_anchors

NAMES = tuple(BUILDERS)
TABLES = ("persons", "visits", "events")
T_PERSONS, R1_PERSONS = 600, 70


def history(rng: np.random.Generator, cohort: str, person_id: int) -> tuple:
    """Return rows of a person, a visit, an event table; a few persons are odd.

    Of every 20, one has no visits; of those, one has nothing at all. Concepts stay with
    a person (7 of 40), so that persons differ.
    """
    births = int(rng.integers(1930, 2000))
    day = date(int(rng.integers(2005, 2012)), 1, 1) + timedelta(
        days=int(rng.integers(365))
    )
    visits, events = [], []
    own = rng.choice(40, 7, replace=False)

    def event(visit_order: int | None, on: date) -> None:
        concept = int(rng.choice(own))
        measured = concept < 20
        value = round(float(rng.normal(concept, 1)), 2)
        events.append(
            (
                cohort, person_id, visit_order,
                "measurement" if measured else "condition_occurrence",
                1000 + concept, on,
                value if measured and rng.random() < 0.9 else None,
                8876 if measured else None,
            )
        )  # fmt: skip

    count = 0 if person_id % 20 == 0 else int(rng.geometric(0.12))
    for order in range(1, count + 1):
        inpatient = rng.random() < 0.2
        end = day + timedelta(days=int(rng.integers(1, 9)) if inpatient else 0)
        visits.append((cohort, person_id, order, 9201 if inpatient else 9202, day, end))
        for _ in range(int(rng.integers(0, 8))):
            event(order, day + timedelta(days=int(rng.integers((end - day).days + 1))))
        day += timedelta(days=int(rng.geometric(1 / 60)))
    if person_id % 40 and rng.random() < 0.2:
        for _ in range(int(rng.integers(1, 4))):
            event(None, day + timedelta(days=int(rng.integers(100))))
    death = day + timedelta(days=10) if rng.random() < 0.2 else None
    person = (
        cohort, person_id, int(rng.choice([8507, 8532])), 8527, 0, births, death
    )  # fmt: skip
    return person, visits, events


def warehouse(people: dict[str, int]) -> duckdb.DuckDBPyConnection:
    """Make the three tables, with so many persons a cohort."""
    con = duckdb.connect()
    con.execute("create schema evaluation_private")
    con.execute(
        "create table evaluation_private.persons (cohort varchar, person_id bigint, "
        "gender_concept_id bigint, race_concept_id bigint, "
        "ethnicity_concept_id bigint, year_of_birth int, death_date date)"
    )
    con.execute(
        "create table evaluation_private.visits (cohort varchar, person_id bigint, "
        "visit_order int, visit_concept_id bigint, visit_start_date date, "
        "visit_end_date date)"
    )
    con.execute(
        "create table evaluation_private.events (cohort varchar, person_id bigint, "
        "visit_order int, source_table varchar, concept_id bigint, event_date date, "
        "value_as_number double, unit_concept_id bigint)"
    )
    rng, rows = np.random.default_rng(7), {name: [] for name in TABLES}
    for cohort, count in people.items():
        for _ in range(count):
            person_id = 10_000 + len(rows["persons"])
            person, visits, events = history(rng, cohort, person_id)
            rows["persons"].append(person)
            rows["visits"] += visits
            rows["events"] += events
    for table, values in rows.items():
        if values:
            types = con.table(f"evaluation_private.{table}").columns
            lent = pa.table(dict(zip(types, map(list, zip(*values)))))
            con.register("lent", lent)
            con.execute(f"insert into evaluation_private.{table} from lent")
            con.unregister("lent")
    return con


@pytest.fixture(scope="module")
def con():
    con = warehouse({"train": T_PERSONS, "ideal": R1_PERSONS, "holdout": 20})
    make_anchors(con, ("ideal", *NAMES), seed=42)
    return con


def rows(con, table, cohort):
    """Rows of a cohort without its name, ascending; each column's NULL counts least."""
    found = con.execute(
        f"select * exclude (cohort) from evaluation_private.{table} "
        "where cohort = ? order by all",
        [cohort],
    ).fetchall()
    assert found, (table, cohort)
    return found


def by_person(con, cohort):
    """Return by person: demographics, visits, events, all without the id."""
    found = {p: [d, [], []] for p, *d in rows(con, "persons", cohort)}
    for place, table in ((1, "visits"), (2, "events")):
        for person_id, *row in rows(con, table, cohort):
            found[person_id][place].append(tuple(row))
    return found


def histories(con, cohort):
    """Count whole histories: a multiset."""
    return Counter(
        (tuple(demographics), tuple(visits), tuple(events))
        for demographics, visits, events in by_person(con, cohort).values()
    )


def contents(con, cohort):
    """Return by person, in order: (start, type, stay, events with days from start)."""
    held = defaultdict(list)
    starts = {}
    for person_id, order, _, start, _ in rows(con, "visits", cohort):
        starts[person_id, order] = start
    for person_id, order, table, concept, day, value, unit in rows(
        con, "events", cohort
    ):
        if order is not None:
            days = (day - starts[person_id, order]).days
            held[person_id, order].append((table, concept, days, value, unit))
    found = defaultdict(list)
    for person_id, order, concept, start, end in rows(con, "visits", cohort):
        events = sorted(held[person_id, order], key=repr)
        found[person_id].append((start, concept, (end - start).days, tuple(events)))
        assert order == len(found[person_id])
    return found


def test_ids_of_a_cohort_are_unique_and_own_all_rows(con):
    for name in NAMES:
        ids = [row[0] for row in rows(con, "persons", name)]
        assert len(set(ids)) == len(ids)
        for table in ("visits", "events"):
            assert {row[0] for row in rows(con, table, name)} <= set(ids)
        if name != "visit_shuffle":  # it has the ids of R1
            assert sorted(ids) == list(range(1, T_PERSONS + 1))
        orders = {(row[0], row[1]) for row in rows(con, "visits", name)}
        assert len(orders) == len(rows(con, "visits", name))
        assert {
            (row[0], row[1]) for row in rows(con, "events", name) if row[1] is not None
        } <= orders


def test_ideal_and_the_real_cohorts_stay_as_they_are(con):
    fresh = warehouse({"train": T_PERSONS, "ideal": R1_PERSONS, "holdout": 20})
    for table in TABLES:
        for cohort in ("train", "ideal", "holdout"):
            assert rows(con, table, cohort) == rows(fresh, table, cohort)


def test_copy_is_the_training_cohort_under_other_ids(con):
    assert histories(con, "copy") == histories(con, "train")
    same = by_person(con, "train")
    order = [row[1:] for row in rows(con, "persons", "copy")]
    assert order != [tuple(row[0]) for row in same.values()]  # the order tells nothing


def test_near_copy_moves_a_person_by_one_shift_and_drops_events(con):
    near = by_person(con, "near_copy")
    wanted = defaultdict(list)
    for demographics, visits, events in by_person(con, "train").values():
        # what no shift changes tells who it is
        key = (tuple(demographics[:4]), relative(demographics, visits))
        wanted[key].append((demographics, visits, events))
    shifts, kept, all_events, dead = Counter(), 0, 0, 0
    for demographics, visits, events in near.values():
        key = (tuple(demographics[:4]), relative(demographics, visits))
        assert key in wanted
        if not visits or len(wanted[key]) > 1:
            continue
        ((was, visits_were, events_were),) = wanted[key]
        shift = visits[0][2] - visits_were[0][2]
        shifts[shift.days] += 1
        moved = {(o, t, c, d + shift, v, u) for o, t, c, d, v, u in events_were}
        assert set(events) <= moved
        kept, all_events = kept + len(events), all_events + len(events_were)
        if was[4] is not None:
            dead += 1
            assert demographics[4] == was[4] + shift
    assert sum(shifts.values()) > 400
    assert dead > 50
    assert min(shifts) >= -30
    assert max(shifts) <= 30
    assert len(shifts) > 50
    error = (0.15 * 0.85 / all_events) ** 0.5
    assert kept / all_events == pytest.approx(0.85, abs=4 * error)


def relative(demographics, visits):
    """Return visits and death by days from the first visit."""
    if not visits:
        return ()
    start = visits[0][2]
    return (
        tuple((o, c, (s - start).days, (e - start).days) for o, c, s, e in visits),
        demographics[4] and (demographics[4] - start).days,
    )


def test_leak_10_is_a_tenth_of_the_training_cohort_and_the_ideal_one_repeated(con):
    leak, real = histories(con, "leak_10"), histories(con, "train")
    ideal = histories(con, "ideal")
    assert not set(real) & set(ideal)
    leaked = {key: count for key, count in leak.items() if key in real}
    assert sum(leaked.values()) == T_PERSONS / 10
    assert all(count <= real[key] for key, count in leaked.items())
    others = {key: count for key, count in leak.items() if key not in real}
    assert set(others) == set(ideal)
    assert sum(others.values()) == T_PERSONS * 0.9
    repeats = {others[key] / ideal[key] for key in others}
    assert max(repeats) - min(repeats) <= 1  # all of R1, about as often


def test_unigram_keeps_marginals(con):
    real, drawn = by_person(con, "train"), by_person(con, "unigram")

    def marginals(people):
        visits = [visits for _, visits, _ in people.values()]
        sizes = Counter(
            (person_id, event[0])
            for person_id, (_, _, events) in people.items()
            for event in events
        )
        loose = {p: n for (p, order), n in sizes.items() if order is None}
        ordered = [n for (_, order), n in sizes.items() if order is not None]
        return {
            "demographics": Counter(tuple(person[0]) for person in people.values()),
            "visits": Counter(map(len, visits)),
            "first": Counter(v[0][2] for v in visits if v),
            "gaps": Counter((b[2] - a[2]).days for v in visits for a, b in pairwise(v)),
            "stays": Counter((c, (e - s).days) for v in visits for _, c, s, e in v),
            "sizes": Counter(ordered),
            "loose": Counter(loose.values()),
            "loose days": Counter(
                e[3] for _, _, events in people.values() for e in events if e[0] is None
            ),
        }

    wanted, found = marginals(real), marginals(drawn)
    for name in wanted:
        assert len(wanted[name]) > 1, name
        assert found[name] == wanted[name], name
    for _, visits, _ in drawn.values():
        assert [v[2] for v in visits] == sorted(v[2] for v in visits)


def test_unigram_draws_events_from_their_frequency(con):
    def items(cohort):
        return Counter((row[2], row[3], row[5], row[6]) for row in events(cohort))

    def events(cohort):
        return rows(con, "events", cohort)

    def concepts(cohort):
        return Counter(row[3] for row in events(cohort))

    real, drawn = concepts("train"), concepts("unigram")
    total = sum(real.values())
    assert sum(drawn.values()) == total
    assert set(items("unigram")) <= set(items("train"))
    for concept, count in real.items():
        error = (count * (1 - count / total)) ** 0.5
        assert abs(drawn[concept] - count) < 5 * error
    # drawn, not permuted
    assert items("unigram") != items("train")
    starts = {row[:2]: row[3] for row in rows(con, "visits", "unigram")}
    assert all(row[4] == starts[row[:2]] for row in events("unigram") if row[1])


def test_unigram_knows_nothing_of_anything_else(con):
    """Persons have 7 concepts in T; here, those with many events have more."""

    def most(cohort):
        found = defaultdict(set)
        for row in rows(con, "events", cohort):
            found[row[0]].add(row[3])
        return max(map(len, found.values()))

    assert most("train") == 7
    assert most("unigram") > 25

    def correlation(cohort):
        people = by_person(con, cohort).values()
        return np.corrcoef(
            [(len(visits), len(events)) for _, visits, events in people], rowvar=False
        )[0, 1]

    def linked(cohort):
        found = [
            (person[0][3], person[1][0][2].year)
            for person in by_person(con, cohort).values()
            if person[1]
        ]
        return np.corrcoef(found, rowvar=False)[0, 1]

    assert abs(linked("unigram")) < 0.15
    assert correlation("unigram") > 0.9  # events a visit are drawn, visits count


def test_independent_keeps_skeletons_and_prevalence(con):
    def skeletons(cohort):
        return Counter(
            (tuple(demographics), tuple(visits))
            for demographics, visits, _ in by_person(con, cohort).values()
        )

    assert skeletons("independent") == skeletons("train")

    def prevalence(cohort):
        return Counter(
            concept
            for _, concept in {(r[0], r[3]) for r in rows(con, "events", cohort)}
        )

    real, drawn = prevalence("train"), prevalence("independent")
    scores = []
    for concept, count in real.items():
        error = (count * (1 - count / T_PERSONS)) ** 0.5
        scores.append((drawn[concept] - count) / error)
    assert max(map(abs, scores)) < 4.5
    assert 0.6 < np.std(scores) < 1.4  # by chance, and by no more than chance
    events = rows(con, "events", "independent")
    assert len({(row[0], row[3]) for row in events}) == len(events)  # once a person
    starts = {row[:2]: row[3] for row in rows(con, "visits", "independent")}
    assert all(starts[row[:2]] == row[4] for row in events)
    values = {(r[2], r[3], r[5], r[6]) for r in rows(con, "events", "train")}
    assert {(r[2], r[3], r[5], r[6]) for r in events} <= values
    # on visits by chance: early and late ones alike
    long = Counter(row[0] for row in rows(con, "visits", "independent"))
    places = [row[1] / (long[row[0]] + 1) for row in events]
    assert np.mean(places) == pytest.approx(0.5, abs=0.02)


def test_independent_breaks_pairs(con):
    """In T, a concept makes another less likely: 7 of 40. Here it does nothing."""

    def pairs(cohort):
        found = defaultdict(set)
        for row in rows(con, "events", cohort):
            found[row[0]].add(row[3])
        return np.var([len(concepts) for concepts in found.values()])

    real = [len({e[2] for e in p[2]}) for p in by_person(con, "train").values()]
    assert max(real) <= 7
    assert pairs("independent") > 2 * pairs("train")


def test_chain_follows_visits_that_share_a_concept(con):
    real, drawn = contents(con, "train"), contents(con, "chain")
    # the successors of T: what was before, the gap, what came
    after = defaultdict(set)
    for visits in real.values():
        for before, visit in pairwise(visits):
            gap = (visit[0] - before[0]).days
            after[gap, visit[1:]].add(frozenset(e[:2] for e in before[3]))
    firsts = {visits[0] for visits in real.values()}
    lasts = [frozenset(e[:2] for e in visits[-1][3]) for visits in real.values()]
    assert len(drawn) == T_PERSONS
    longest = max(map(len, real.values()))
    links = 0
    for visits in drawn.values():
        assert visits[0] in firsts
        for before, visit in pairwise(visits):
            have = frozenset(event[:2] for event in before[3])
            sources = after[(visit[0] - before[0]).days, visit[1:]]
            assert any(have & source or not (have or source) for source in sources)
            links += 1
        assert len(visits) <= longest
        have = frozenset(event[:2] for event in visits[-1][3])
        assert len(visits) == longest or any(
            have & last or not (have or last) for last in lasts
        )
    assert links > 1000
    # and it is no copy
    assert (
        len({tuple(v) for v in real.values()} & {tuple(v) for v in drawn.values()}) < 60
    )


def test_chain_draws_any_visit_that_shares_a_concept():
    """After concept 0 come in T as often 1, 2 and the end; after those, the end."""
    con, size = warehouse({}), 3000
    insert = "insert into evaluation_private"
    con.execute(
        f"{insert}.persons select 'train', range, 8507, 0, 0, 1980, null "
        f"from range({size})"
    )
    con.execute(
        f"{insert}.visits select 'train', range, 1, 9202, '2010-01-01', '2010-01-01' "
        f"from range({size}) union all "
        "select 'train', range, 2, 9202, '2011-01-01', '2011-01-01' "
        f"from range({size}) where range % 3 > 0"
    )
    con.execute(
        f"{insert}.events select 'train', person_id, visit_order, 'drug_exposure', "
        "if(visit_order = 1, 0, person_id % 3), visit_start_date, null, null "
        "from evaluation_private.visits"
    )
    make_anchors(con, ["chain"], seed=3)
    found = Counter(row[3] for row in rows(con, "events", "chain"))
    assert found.keys() == {0, 1, 2}
    assert found[0] == size
    for concept in (1, 2):
        assert found[concept] == pytest.approx(size / 3, abs=4 * (size * 2 / 9) ** 0.5)


def test_no_chain_is_longer_than_the_longest_history():
    """Where all visits hold the same, one in three picked ones is a last."""
    con = warehouse({})
    for table, columns in {
        "persons": "8507, 0, 0, 1980, null",
        "visits": "range % 3 + 1, 9202, make_date(2010, range % 3 + 1, 1), null",
        "events": "1 + range % 3, 'drug_exposure', 1, '2010-01-01', null, null",
    }.items():
        rows_each = 1 if table == "persons" else 3
        con.execute(
            f"insert into evaluation_private.{table} select 'train', "
            f"range // {rows_each}, {columns} from range(300 * {rows_each})"
        )
    make_anchors(con, ["chain"], seed=3)
    lengths = Counter(row[0] for row in rows(con, "visits", "chain"))
    found = Counter(lengths.values())
    assert found.keys() == {1, 2, 3}
    assert found[3] / 300 == pytest.approx(4 / 9, abs=0.12)


def test_chain_dies_as_the_visit_that_ended_it(con):
    lags = {
        (death - visits[-1][2]).days
        for (*_, death), visits, _ in by_person(con, "train").values()
        if death and visits
    }
    found = by_person(con, "chain").values()
    dead = [(person[0][4] - person[1][-1][2]).days for person in found if person[0][4]]
    assert set(dead) <= lags
    assert 0.1 < len(dead) / T_PERSONS < 0.35
    ages = {
        (person[0][0], person[1][0][2].year - person[0][3])
        for person in by_person(con, "train").values()
        if person[1]
    }
    assert {
        (person[0][0], person[1][0][2].year - person[0][3]) for person in found
    } <= ages


def test_visit_shuffle_permutes_within_each_person(con):
    real, drawn = contents(con, "ideal"), contents(con, "visit_shuffle")
    assert real.keys() == drawn.keys()
    moved = places = 0
    for person_id, visits in real.items():
        assert [v[0] for v in drawn[person_id]] == [v[0] for v in visits]
        assert Counter(v[1:] for v in drawn[person_id]) == Counter(
            v[1:] for v in visits
        )
        if len(visits) > 4:
            places += len(visits)
            moved += sum(a[1:] != b[1:] for a, b in zip(visits, drawn[person_id]))
    assert moved > 0.6 * places
    assert rows(con, "persons", "visit_shuffle") == rows(con, "persons", "ideal")

    def loose(cohort):
        return [row for row in rows(con, "events", cohort) if row[1] is None]

    assert loose("visit_shuffle") == loose("ideal") != []


@pytest.mark.parametrize("name", NAMES)
def test_rows_depend_on_the_seed_alone(con, name):
    people = {"train": T_PERSONS, "ideal": R1_PERSONS, "holdout": 20}
    same, other = warehouse(people), warehouse(people)
    for table in TABLES:  # the same rows in another order, and other threads
        same.execute(
            f"create or replace table evaluation_private.{table} as "
            f"from evaluation_private.{table} order by hash({table})"
        )
    same.execute("pragma threads=3")
    make_anchors(same, [name], seed=42)
    make_anchors(other, [name], seed=43)
    assert all(rows(same, t, name) == rows(con, t, name) for t in TABLES)
    assert any(rows(other, t, name) != rows(con, t, name) for t in TABLES)


def test_an_empty_source_makes_an_empty_anchor():
    def counts(con):
        return {
            name: con.execute(
                """
                select
                    (select count(*) from evaluation_private.persons where cohort = $1),
                    (select count(*) from evaluation_private.visits where cohort = $1),
                    (select count(*) from evaluation_private.events where cohort = $1)
                """,
                [name],
            ).fetchone()
            for name in NAMES
        }

    empty = warehouse({})
    make_anchors(empty, NAMES, seed=1)
    assert set(counts(empty).values()) == {(0, 0, 0)}

    only_train = warehouse({"train": 50})
    make_anchors(only_train, NAMES, seed=1)
    found = counts(only_train)
    assert found.pop("leak_10") == found.pop("visit_shuffle") == (0, 0, 0)
    assert all(min(numbers) > 0 for numbers in found.values())

    bare = warehouse({"train": 50, "ideal": 20})
    bare.execute("delete from evaluation_private.visits")
    bare.execute("delete from evaluation_private.events")
    make_anchors(bare, NAMES, seed=1)
    found = counts(bare)
    assert found.pop("chain") == (0, 0, 0)
    assert found.pop("visit_shuffle") == (20, 0, 0)
    assert set(found.values()) == {(50, 0, 0)}


def test_nothing_but_rows_is_left_behind(con):
    assert (
        con.execute("select table_name from duckdb_tables() where temporary").fetchall()
        == []
    )
    assert (
        con.execute(
            "select view_name from duckdb_views() where not internal"
        ).fetchall()
        == []
    )


def test_a_name_of_no_anchor_is_refused(con):
    with pytest.raises(KeyError, match="unknown"):
        make_anchors(con, ["unknown"], seed=1)
