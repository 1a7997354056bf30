"""The simulated population's five laws, held against what each cohort comes to.

Where the source is what `simulate` wrote, the truth is known (docs/simulator.md): real
and synthetic persons can be compared with it, and not with one another alone. Records
know less than the laws do (a new drug is written down at a visit, a follow-up ends with
the last record), so the training stands beside: a model should come to what it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from omop_gpt.evaluation.cohorts import SCHEMA
from omop_gpt.simulation.knowledge import Care, Knowledge

if TYPE_CHECKING:
    import duckdb

    from omop_gpt.evaluation.results import Results

KNOWN_BEFORE = 400  # days of record before a diagnosis that is held to be a new one
LEAST_PERSONS = 20  # with something to count
COURSE_YEARS = 3  # of a course whose slope is measured
LINE_YEARS = 3  # from diagnosis to the next line of treatment
CONDITIONS, DRUGS = "condition_occurrence", "drug_exposure"


@dataclass(frozen=True, kw_only=True)
class Law:
    """A number that is known, and the query of what a person adds to it.

    `query` returns cohort, person_id, part and whole: the cohort's number is the sum of
    parts over that of wholes.
    """

    mechanism: str
    name: str
    truth: float
    query: str


def measure_truth(
    con: duckdb.DuckDBPyConnection, cohorts: Sequence[str], results: Results
) -> None:
    """Add metric `known_truth`, one stratum a law, and curve `truth`, of each cohort.

    Intervals are those of a ratio of sums over persons (Cochran 1977, Sampling
    Techniques, ch. 6). Of fewer than LEAST_PERSONS persons nothing is said.
    """
    con.execute(
        f"""
        create or replace temp table followed as
        with days as (
            select cohort, person_id, visit_start_date as first_date,
                greatest(visit_start_date, visit_end_date) as last_date
            from {SCHEMA}.visits
            union all
            select cohort, person_id, event_date, event_date from {SCHEMA}.events
        )
        select
            cohort, person_id, gender_concept_id, year_of_birth, death_date,
            min(first_date) as first_date,
            coalesce(any_value(death_date), max(last_date)) as last_date
        from {SCHEMA}.persons inner join days using (cohort, person_id)
        group by all
        """
    )
    for law in laws(Knowledge()):
        found = con.execute(law.query).fetchnumpy()
        for cohort in cohorts:
            rows = found["cohort"] == cohort
            part, whole = (
                np.asarray(found[side][rows], float) for side in ("part", "whole")
            )
            value, low, high, persons = ratio(part, whole)
            results.add(
                "known_truth", cohort, value, stratum=law.name, ci_low=low,
                ci_high=high, n=persons,
            )  # fmt: skip
            results.draw(
                "truth",
                [
                    {
                        "cohort": cohort, "mechanism": law.mechanism, "name": law.name,
                        "truth": law.truth, "value": value, "low": low, "high": high,
                        "persons": persons,
                    }
                ],
            )  # fmt: skip
    con.execute("drop table followed")


def ratio(part: np.ndarray, whole: np.ndarray) -> tuple[float, float, float, int]:
    """Sum of parts (P,) over sum of wholes (P,), its 95 % interval, and the persons."""
    persons = int((whole > 0).sum())
    if persons < LEAST_PERSONS:
        return np.nan, np.nan, np.nan, persons
    value = part.sum() / whole.sum()
    size = len(part)
    off = part - value * whole
    error = np.sqrt(size / (size - 1) * (off**2).sum()) / whole.sum()
    return value, value - 1.96 * error, value + 1.96 * error, persons


def laws(knowledge: Knowledge) -> list[Law]:
    """All that is known, with its query over the cohorts."""
    found = []
    for trend in knowledge.trends:
        condition = knowledge.conditions[trend.condition]
        concept = trend.measurement.concept_id
        diagnosis = first_of(CONDITIONS, recorded_as(condition.care))
        if trend.drives:
            found.append(
                Law(
                    mechanism="trends that drive diagnoses",
                    name=f"value at the diagnosis of {condition.name}",
                    truth=trend.threshold,
                    query=at_diagnosis(diagnosis, concept),
                )
            )
        else:
            found.append(
                Law(
                    mechanism="chronic courses",
                    name=f"change a year in {condition.name}",
                    truth=trend.slope,
                    query=slope_since(diagnosis, concept),
                )
            )
    for index, waits in knowledge.lines.items():
        condition = knowledge.conditions[index]
        days = round(LINE_YEARS * 365.25)
        found.append(
            Law(
                mechanism="lines of treatment",
                name=f"second line of {condition.name} within {LINE_YEARS} years",
                truth=float(waits[0].by(days)),
                query=treated_within(
                    first_of(CONDITIONS, recorded_as(condition.care)),
                    first_of(DRUGS, later_drugs(knowledge, index)),
                    days,
                ),
            )
        )
    law = knowledge.readmission
    found += [
        Law(
            mechanism="readmission",
            name=f"of {law.OLD} and older, within {days} days",
            truth=float(law.waiting.by(days)),
            query=readmitted_within(days, law.OLD),
        )
        for days in (30, law.DAYS)
    ]
    found += [
        Law(
            mechanism="survival",
            name=f"deaths over expected ones{' with ' * bool(name)}{name}",
            truth=1.0,
            query=deaths_expected(knowledge, name),
        )
        for name in ("", "type 2 diabetes", "dementia")
    ]
    return found


def recorded_as(care: Sequence[Care]) -> list[int]:
    """Concepts that a condition is written down as."""
    return [
        one.concept_id for one in care if one.is_record and one.domain == "Condition"
    ]


def later_drugs(knowledge: Knowledge, condition: int) -> list[int]:
    """Drugs that only a later line of treatment of a condition gives."""
    later = {
        care.concept_id
        for care in knowledge.conditions[condition].care
        if care.lines and care.lines[0] > 1
    }
    earlier = {
        care.concept_id
        for other in knowledge.conditions
        for care in other.care
        if other.index != condition or not care.lines or care.lines[0] <= 1
    }
    return sorted(later - earlier)


def first_of(table: str, concepts: Sequence[int]) -> str:
    """Query of the first day of any of some concepts: cohort, person_id, first_day."""
    return f"""
        select cohort, person_id, min(event_date) as first_day
        from {SCHEMA}.events
        where
            source_table = '{table}'
            and concept_id in ({", ".join(map(str, concepts)) or "null"})
        group by 1, 2
    """


def at_diagnosis(diagnosis: str, concept: int) -> str:
    """Values on the day of a new diagnosis: their sum, and how many."""
    return f"""
        select cohort, person_id, sum(value_as_number) as part, count(*) as whole
        from ({diagnosis}) inner join followed using (cohort, person_id)
        inner join {SCHEMA}.events using (cohort, person_id)
        where
            event_date = first_day and concept_id = {concept}
            and value_as_number is not null
            and first_day > first_date + {KNOWN_BEFORE}
        group by 1, 2
    """


def slope_since(diagnosis: str, concept: int) -> str:
    """Change a year within persons: sums of the products and squares of regression."""
    return f"""
        select
            cohort, person_id,
            covar_pop(value_as_number, day / 365.25) * count(*) as part,
            var_pop(day / 365.25) * count(*) as whole
        from (
            select
                cohort, person_id, value_as_number, event_date - first_day as day
            from ({diagnosis}) inner join {SCHEMA}.events using (cohort, person_id)
            where concept_id = {concept} and value_as_number is not null
        )
        where day between 0 and {round(COURSE_YEARS * 365.25)}
        group by 1, 2
        having var_pop(day) > 0
    """


def treated_within(diagnosis: str, treatment: str, days: int) -> str:
    """Whether a new treatment came by then, of persons who were followed so long."""
    return f"""
        select
            cohort, person_id,
            cast(coalesce(treatment.first_day <= diagnosis.first_day + {days}, false)
                as int) as part,
            1 as whole
        from ({diagnosis}) as diagnosis
        inner join followed using (cohort, person_id)
        left join ({treatment}) as treatment using (cohort, person_id)
        where
            diagnosis.first_day > first_date + {KNOWN_BEFORE}
            and last_date >= diagnosis.first_day + {days}
    """


def readmitted_within(days: int, age: int) -> str:
    """Stays that another follows by then, of those that were followed so long."""
    return f"""
        select
            cohort, person_id,
            count(*) filter (next_day - visit_end_date <= {days}) as part,
            count(*) as whole
        from (
            select
                *,
                lead(visit_start_date) over (
                    partition by cohort, person_id order by visit_start_date
                ) as next_day
            from {SCHEMA}.visits where visit_concept_id = 9201
        )
        inner join followed using (cohort, person_id)
        where
            year(visit_end_date) - year_of_birth >= {age}
            and last_date >= visit_end_date + {days}
        group by 1, 2
    """


def deaths_expected(knowledge: Knowledge, condition: str) -> str:
    """Deaths, and how many the law expects, from a condition on, if one is named.

    Year by year from the first record on, by the conditions that are recorded by then;
    births are taken to be in the middle of their year.
    """
    law = knowledge.survival
    growth, per_year = law.growth, law.rate_60 / law.growth
    boosts = [
        (
            f"first_{index}",
            ratio,
            first_of(CONDITIONS, recorded_as(knowledge.conditions[index].care)),
        )
        for index, ratio in law.boosts.items()
    ]
    joins = "".join(
        f" left join ({query.replace('first_day', name)}) using (cohort, person_id)"
        for name, _, query in boosts
    )
    factor = " * ".join(
        f"case when {name} <= day then {ratio} else 1 end" for name, ratio, _ in boosts
    )
    since = f"first_{knowledge.index[condition]}" if condition else "first_date"
    return f"""
        with known as (
            select *, greatest(first_date, {since}) as start_date
            from followed{joins}
            where gender_concept_id in (8507, 8532) and {since} <= last_date
        ),
        years as (
            select *, unnest(range(start_date, last_date, interval 1 year)) as day
            from known where start_date < last_date
        ),
        spans as (
            select
                *,
                (day::date - make_date(year_of_birth, 7, 1)) / 365.25 as age,
                least(last_date - day::date, 365.25) / 365.25 as years
            from years
        )
        select
            cohort, person_id,
            cast(any_value(death_date) is not null as int) as part,
            sum(
                {factor}
                * case when gender_concept_id = 8532 then {law.factors[1]}
                    else {law.factors[0]} end
                * {per_year} * (
                    exp({growth} * (age + years - 60)) - exp({growth} * (age - 60))
                )
                + case when age < 1 then {law.infant} * years else 0 end
            ) as whole
        from spans
        group by 1, 2
    """
