"""What cannot be: for a sex, an age, after death, together, without a reason."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from omop_gpt.evaluation.cohorts import TRAIN
from omop_gpt.evaluation.concepts import Concept, concept_matrix
from omop_gpt.evaluation.distances import mean
from omop_gpt.grammar import read_csv
from omop_gpt.warehouse import project_folder

if TYPE_CHECKING:
    import duckdb

    from omop_gpt.evaluation.results import Add

EXPECTED = 50  # training persons who would have a pair by chance; nobody has it
MINED = 2_000  # concepts among which such pairs are looked for
INDICATIONS = 3  # conditions at most that speak for a drug,
LIFT = 2.0  # each so much more frequent in those who have it than in all,
COVERED = 0.99  # and so many of them have one


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
