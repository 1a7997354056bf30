"""Persons as vectors, and whom of a cohort they are nearest to.

What every attack by distance starts from. A vector is made of what real persons have:
one place each for their sexes, their races and their commonest concepts, and one for
the age at the first visit. Of all real persons, for what the training alone has would
tell the training from the holdout. Knows of no attack.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from omop_gpt.evaluation.cohorts import REAL

if TYPE_CHECKING:
    import duckdb

CONCEPTS = 1_000  # of real persons, the commonest
UNIT = 100  # vectors are in hundredths: whole numbers, with which equal is equal
ROWS, TARGETS = 8_192, 2_048  # a matrix of distances is no larger
UNKNOWN = -1  # a fact that is not known
# persons by chance; another one in each cohort, for a copy may keep the ids
ORDER = "md5('target:' || cohort || ':' || person_id), person_id"


@dataclass(frozen=True)
class People:
    """Persons of a cohort in an order of chance, so that any first n are a sample.

    `rows`: (N, D) uint8; a vector is a row times `Space.scale`, in hundredths. `facts`:
    of each person, (N,) int64 by name, UNKNOWN where it is.
    """

    rows: np.ndarray
    facts: dict[str, np.ndarray]

    def __len__(self) -> int:
        """Count them."""
        return len(self.rows)

    def first(self, most: int) -> People:
        """Return so many of the persons, or all."""
        return People(
            self.rows[:most], {name: fact[:most] for name, fact in self.facts.items()}
        )


class Space:
    """What the places of a vector stand for: sex, race, age, then concepts."""

    def __init__(self, con: duckdb.DuckDBPyConnection) -> None:
        self.con = con
        self.concepts = con.execute(
            """
            select source_table, concept_id, count(distinct person_id) as persons
            from evaluation_private.events
            where list_contains(?, cohort) and concept_id <> 0
            group by 1, 2
            order by persons desc, source_table, concept_id
            limit ?
            """,
            [list(REAL), CONCEPTS],
        ).fetchall()
        self.categories = [
            (column, value)
            for column in ("gender_concept_id", "race_concept_id")
            for (value,) in con.execute(
                f"select coalesce({column}, {UNKNOWN}) from evaluation_private.persons "
                "where list_contains(?, cohort) group by 1 order by count(*) desc, 1",
                [list(REAL)],
            ).fetchall()
        ]
        self.age_place = len(self.categories)
        self.head = self.age_place + 1  # places before the concepts
        self.scale = np.full(self.head + len(self.concepts), UNIT, dtype=np.float32)
        # a hundredth a year, so that it is as long in every cohort
        self.scale[self.age_place] = 1

    @cached_property
    def shares(self) -> np.ndarray:
        """Share of real persons with each concept: (C,)."""
        (persons,) = self.con.execute(
            "select count(*) from evaluation_private.persons "
            "where list_contains(?, cohort)",
            [list(REAL)],
        ).fetchone()
        return np.array([n for _, _, n in self.concepts]) / max(persons, 1)

    @cached_property
    def conditions(self) -> np.ndarray:
        """Places of conditions in a vector, the commonest first."""
        tables = np.array([table for table, _, _ in self.concepts], dtype=object)
        return self.head + np.flatnonzero(tables == "condition_occurrence")

    def people(self, cohort: str) -> People:
        """Read a cohort; the order of persons is that of a hash of their id."""
        person_ids, facts = facts_of(self.con, cohort)
        rows = np.zeros((len(person_ids), len(self.scale)), dtype=np.uint8)
        for place, (column, value) in enumerate(self.categories):
            rows[:, place] = facts[column] == value
        is_known = (facts["first_year"] >= 0) & (facts["year_of_birth"] >= 0)
        age = facts["first_year"] - facts["year_of_birth"]
        rows[:, self.age_place] = np.where(is_known, np.clip(age, 0, 255), 0)
        pairs = self.con.execute(
            """
            with places as (
                select
                    unnest($2::varchar[]) as source_table,
                    unnest($3::bigint[]) as concept_id,
                    unnest(range(len($2::varchar[]))) as place
            )
            select distinct person_id, place
            from evaluation_private.events
            inner join places using (source_table, concept_id)
            where cohort = $1
            """,
            [
                cohort,
                [table for table, _, _ in self.concepts],
                [concept for _, concept, _ in self.concepts],
            ],
        ).fetchnumpy()
        order = np.argsort(person_ids)
        row = order[np.searchsorted(person_ids[order], pairs["person_id"])]
        rows[row, self.head + pairs["place"]] = 1
        return People(rows, facts)


def facts_of(
    con: duckdb.DuckDBPyConnection, cohort: str
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Read ids (N,) int64 and facts of a cohort's persons, by a hash of their id."""
    found = con.execute(
        f"""
        with
        visits as (
            select
                person_id,
                year(min(visit_start_date)) as first_year,
                year(max(visit_start_date)) as last_year
            from evaluation_private.visits
            where cohort = $1
            group by 1
        ),
        events as (
            select person_id, count(*) as event_count
            from evaluation_private.events
            where cohort = $1
            group by 1
        )
        select
            person_id, gender_concept_id, race_concept_id, ethnicity_concept_id,
            year_of_birth, first_year, last_year,
            coalesce(event_count, 0) as event_count
        from (from evaluation_private.persons where cohort = $1)
        left join visits using (person_id)
        left join events using (person_id)
        order by {ORDER}
        """,
        [cohort],
    ).fetchnumpy()
    facts = {
        name: np.ma.filled(column.astype(np.int64), UNKNOWN)
        for name, column in found.items()
    }
    return facts.pop("person_id"), facts


def nearest(
    targets: np.ndarray,
    rows: np.ndarray,
    scale: np.ndarray,
    leave_out: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Squared distance to the nearest of all `rows`, and which one it is.

    `targets` (M, D) and `rows` (N, D) uint8, `scale` (D,): see People. `leave_out`:
    (M,), a row for each target that does not count. Returns (M,) float64 (a concept is
    1, a year of age 0.0001), infinite where there is no row; and (M,) int64, of equal
    ones the first.
    """
    best = np.full(len(targets), np.inf, dtype=np.float32)
    place = np.zeros(len(targets), dtype=np.int64)
    points = targets * scale
    for first in range(0, len(rows), ROWS):
        block = rows[first : first + ROWS] * scale
        squares = np.einsum("ij,ij->i", block, block)
        for start in range(0, len(targets), TARGETS):
            here = slice(start, start + TARGETS)
            # |t - r|² = |t|² + |r|² - 2 t·r, of which |t|² is added in the end
            distance = points[here] @ block.T
            distance *= -2
            distance += squares
            if leave_out is not None:
                own = leave_out[here] - first
                which = np.flatnonzero((own >= 0) & (own < len(block)))
                distance[which, own[which]] = np.inf
            column = distance.argmin(axis=1)
            found = distance[np.arange(len(column)), column]
            is_nearer = found < best[here]
            best[here][is_nearer] = found[is_nearer]
            place[here][is_nearer] = column[is_nearer] + first
    distances = best.astype(float) + np.einsum("ij,ij->i", points, points)
    return np.round(distances / UNIT**2, 4), place
