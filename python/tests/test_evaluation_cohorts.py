"""As what conditions and drugs count, too, by the vocabulary beside a CDM."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest
from omop_gpt.evaluation.cohorts import SCHEMA, families_query

# conditions: 1 is an ancestor of 2 and 3, and 9 of all, but nobody has 9
CONDITIONS = [1, 2, 3, 4]
# drugs: 11 is of ingredients 21 and 22 and of ATC class 31, 12 of ingredient 21 alone,
# 13 of nothing; 21 is given as such
DRUGS = [11, 12, 13, 21]
ANCESTORS = [
    (9, 1), (9, 2), (9, 3), (1, 1), (1, 2), (1, 3), (2, 2), (21, 11), (22, 11),
    (31, 11), (32, 11), (21, 12), (21, 21), (1, 11),
]  # fmt: skip
CLASSES = [(21, "Ingredient"), (22, "Ingredient"), (31, "ATC 3rd"), (32, "ATC 5th")]
ALONE = {(1, 1), (2, 2), (3, 3), (4, 4), (11, 11), (12, 12), (13, 13), (21, 21)}


@pytest.fixture
def con() -> duckdb.DuckDBPyConnection:
    made = duckdb.connect()
    made.execute(f"create schema {SCHEMA}")
    made.execute(f"create table {SCHEMA}.events (source_table text, concept_id bigint)")
    for table, concepts in (
        ("condition_occurrence", CONDITIONS), ("drug_exposure", DRUGS),
        ("measurement", [1, 5]),
    ):  # fmt: skip
        made.executemany(
            f"insert into {SCHEMA}.events values (?, ?)",
            [(table, concept) for concept in concepts * 2],
        )
    return made


def write(con: duckdb.DuckDBPyConnection, folder: Path, table: str, **columns) -> None:
    (folder / table).mkdir()
    names = ", ".join(columns)
    values = ", ".join(map(str, zip(*columns.values(), strict=True)))
    con.execute(
        f"copy (from (values {values}) as rows ({names})) "
        f"to '{folder / table}/part-0.parquet'"
    )


def families(con: duckdb.DuckDBPyConnection, folder: Path) -> set[tuple[int, int]]:
    rows = con.execute(families_query(folder)).fetchall()
    assert {
        table: {concept for other, concept, _ in rows if other == table}
        for table, _, _ in rows
    } == {"condition_occurrence": set(CONDITIONS), "drug_exposure": set(DRUGS)}
    assert len(rows) == len(set(rows))
    return {(concept, family) for _, concept, family in rows}


def test_a_condition_counts_as_its_ancestors_and_a_drug_as_its_classes(con, tmp_path):
    ancestors, descendants = zip(*ANCESTORS, strict=True)
    write(
        con, tmp_path, "concept_ancestor",
        ancestor_concept_id=ancestors, descendant_concept_id=descendants,
    )  # fmt: skip
    ids, names = zip(*CLASSES, strict=True)
    write(con, tmp_path, "concept", concept_id=ids, concept_class_id=names)
    assert families(con, tmp_path) == {
        (1, 1), (2, 2), (2, 1), (3, 3), (3, 1), (4, 4), (11, 31), (12, 21), (13, 13),
        (21, 21),
    }  # fmt: skip


def test_ingredients_are_classes_where_there_is_no_other(con, tmp_path):
    ancestors, descendants = zip(*ANCESTORS, strict=True)
    write(
        con, tmp_path, "concept_ancestor",
        ancestor_concept_id=map(str, ancestors),
        descendant_concept_id=map(str, descendants),
    )  # fmt: skip
    write(
        con, tmp_path, "concept",
        concept_id=["21", "22"], concept_class_id=["Ingredient"] * 2,
    )  # fmt: skip
    found = families(con, tmp_path)
    assert {family for concept, family in found if concept == 11} == {21, 22}
    assert {family for concept, family in found if concept == 13} == {13}


def test_without_a_vocabulary_each_is_itself(con, tmp_path):
    assert families(con, tmp_path) == ALONE
