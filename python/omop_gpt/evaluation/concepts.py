"""Which concepts persons of a cohort have, and when first and last: as matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    import duckdb

Concept = tuple[str, int]  # source_table, concept_id
NEVER = np.int32(2**30)  # a day that does not come


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
