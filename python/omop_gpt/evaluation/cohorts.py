"""Real and synthetic patients in one form: three tables with a column `cohort`.

They are made in schema `evaluation_private` of the warehouse, for they hold patients:

    persons  cohort, person_id, gender_concept_id, race_concept_id,
             ethnicity_concept_id, year_of_birth, death_date
    visits   cohort, person_id, visit_order (from 1), visit_concept_id,
             visit_start_date, visit_end_date
    events   cohort, person_id, visit_order (NULL: of no visit), source_table,
             concept_id, event_date, value_as_number, unit_concept_id

Real patients are those of the timeline, under the name of their split: train,
validation, holdout; the reserve is two cohorts, half each by chance: `ideal`, which
poses as synthetic, and `calibration`, which tells how hard a target is to find.
Synthetic ones are cohort `synthetic`; further sets of the same model and other seeds
are `synthetic_2`, `synthetic_3` and so on.
Ages are whole years, from the year of birth: a sequence tells no more.

A fourth table, concept_families (source_table, concept_id, family_concept_id), tells as
what a condition or a drug counts, too, where vocabulary tables lie beside the synthetic
ones: a condition as each of its ancestors that somebody has; a drug as its classes of
the third ATC level, else its ingredients, else itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omop_gpt.source import check_file
from omop_gpt.step import InputError

if TYPE_CHECKING:
    import duckdb

SCHEMA = "evaluation_private"
TABLES = ("persons", "visits", "events")
TRAIN, HOLDOUT, IDEAL, CALIBRATION = "train", "holdout", "ideal", "calibration"
REAL = (TRAIN, "validation", HOLDOUT, IDEAL, CALIBRATION)
RESERVE = "reserve"  # the split that ideal and calibration are halves of
SYNTHETIC = "synthetic"
# id, concept, date and, where there are any, value and unit of the event tables
EVENT_COLUMNS = {
    "condition_occurrence": ("condition_concept_id", "condition_start_date"),
    "drug_exposure": ("drug_concept_id", "drug_exposure_start_date"),
    "procedure_occurrence": ("procedure_concept_id", "procedure_date"),
    "measurement": ("measurement_concept_id", "measurement_date"),
    "observation": ("observation_concept_id", "observation_date"),
    "device_exposure": ("device_concept_id", "device_exposure_start_date"),
}
WITH_VALUES = ("measurement", "observation")
DRUG_CLASSES = ("ATC 3rd", "Ingredient")  # what drugs count as, the first that is there


def names_of(sets: int) -> list[str]:
    """Name the cohorts of so many sets of synthetic patients."""
    return [SYNTHETIC, *(f"{SYNTHETIC}_{number}" for number in range(2, sets + 1))]


def make_cohorts(
    con: duckdb.DuckDBPyConnection,
    real_folder: Path,
    synthetic_folders: Sequence[Path],
) -> None:
    """Make the tables of the timeline in `real_folder` and CDMs' Parquet files.

    Raises InputError where a table that is needed is missing or cannot be read.
    """
    con.execute(f"create schema if not exists {SCHEMA}")
    for table, query in real_queries(real_folder).items():
        con.execute(f"create or replace table {SCHEMA}.{table} as {query}")
    for cohort, folder in zip(
        names_of(len(synthetic_folders)), synthetic_folders, strict=True
    ):
        for table, query in synthetic_queries(folder, cohort).items():
            con.execute(f"insert into {SCHEMA}.{table} by name {query}")
    families = families_query(synthetic_folders[0])
    con.execute(f"create or replace table {SCHEMA}.concept_families as {families}")


def real_queries(folder: Path) -> dict[str, str]:
    """Write queries of the real cohorts, over the timeline of an encode's output."""
    tables = {name: files_of(folder / "timeline", name) for name in TABLES}
    for name, files in tables.items():
        if not files:
            raise InputError(
                f"--real_folder {folder} has no timeline/{name}/*.parquet: "
                "name the folder that `omop-gpt encode` wrote."
            )
    persons, visits, events = (parquet(tables[name]) for name in TABLES)
    # the halves of the reserve: a hash of its own, apart from that of the splits
    split = f"""
        select
            person_id,
            case
                when split <> 'reserve' then split
                when md5_number_upper('half:' || person_id) % 2 = 0 then 'ideal'
                else 'calibration'
            end as cohort
        from {persons}
    """
    numbered = f"""
        select
            *,
            row_number() over (
                partition by person_id order by visit_order
            ) as visit_number
        from {visits}
        where not is_loose
    """
    return {
        "persons": f"""
            select
                cohort, person_id, gender_concept_id, race_concept_id,
                ethnicity_concept_id, year_of_birth, death_date
            from ({split}) inner join {persons} using (person_id)
        """,
        "visits": f"""
            select
                cohort, person_id, cast(visit_number as int) as visit_order,
                visit_concept_id, visit_start_date, visit_end_date
            from ({split}) inner join ({numbered}) using (person_id)
        """,
        "events": f"""
            select
                cohort, person_id, cast(visit_number as int) as visit_order,
                source_table, concept_id, event_date, value_as_number,
                unit_concept_id
            from ({split}) inner join {events} as events using (person_id)
            left join ({numbered}) as numbered using (person_id, visit_order)
        """,
    }


def synthetic_queries(folder: Path, cohort: str = SYNTHETIC) -> dict[str, str]:
    """Write queries of a synthetic cohort, over a CDM's folders of Parquet files."""
    person, visit = files_of(folder, "person"), files_of(folder, "visit_occurrence")
    for name, files in {"person": person, "visit_occurrence": visit}.items():
        if not files:
            raise InputError(
                f"the synthetic folder {folder} has no {name}/*.parquet: "
                "name the folder of OMOP tables that `omop-gpt decode` wrote."
            )
    death = files_of(folder, "death")
    deaths = (
        "select person_id, min(death_date) as death_date "
        f"from {parquet(death)} group by 1"
        if death
        else "select null::bigint as person_id, null::date as death_date where false"
    )
    visits = f"""
        select
            *,
            row_number() over (
                partition by person_id
                order by visit_start_date, visit_occurrence_id
            ) as visit_number
        from {parquet(visit)}
    """
    events = [
        f"""
        select
            cast(events.person_id as bigint) as person_id,
            cast(visit_number as int) as visit_order, '{table}' as source_table,
            cast({concept} as bigint) as concept_id, cast({day} as date) as event_date,
            {"value_as_number" if table in WITH_VALUES else "null::double"}
                as value_as_number,
            {"unit_concept_id" if table in WITH_VALUES else "null::bigint"}
                as unit_concept_id
        from {parquet(files)} as events
        left join ({visits}) as visits using (visit_occurrence_id)
        """
        for table, (concept, day) in EVENT_COLUMNS.items()
        if (files := files_of(folder, table))
    ]
    if not events:
        raise InputError(
            f"the synthetic folder {folder} has none of {', '.join(EVENT_COLUMNS)}."
        )
    return {
        "persons": f"""
            select
                '{cohort}' as cohort, person_id, gender_concept_id,
                race_concept_id, ethnicity_concept_id, year_of_birth, death_date
            from {parquet(person)} left join ({deaths}) using (person_id)
        """,
        "visits": f"""
            select
                '{cohort}' as cohort, person_id,
                cast(visit_number as int) as visit_order, visit_concept_id,
                visit_start_date, visit_end_date
            from ({visits})
        """,
        "events": f"""
            select '{cohort}' as cohort, *
            from ({" union all by name ".join(events)})
        """,
    }


def families_query(folder: Path) -> str:
    """Write the query of concept_families, over a CDM's vocabulary tables."""
    ancestors = files_of(folder, "concept_ancestor")
    concepts = files_of(folder, "concept")
    related = (
        f"""
        select
            cast(descendant_concept_id as bigint) as concept_id,
            cast(ancestor_concept_id as bigint) as family_concept_id
        from {parquet(ancestors)}
        """
        if ancestors
        else "select null::bigint as concept_id, 0 as family_concept_id where false"
    )
    classes = (
        f"""
        select
            cast(concept_id as bigint) as family_concept_id,
            list_position({list(DRUG_CLASSES)}, concept_class_id) as class_order
        from {parquet(concepts)}
        where concept_class_id in {DRUG_CLASSES}
        """
        if concepts
        else "select null::bigint as family_concept_id, 0 as class_order where false"
    )
    return f"""
        with used as (
            select distinct source_table, concept_id from {SCHEMA}.events
            where source_table in ('condition_occurrence', 'drug_exposure')
        ),
        related as ({related}),
        found as (
            select used.source_table, concept_id, family_concept_id
            from used inner join related using (concept_id)
            where
                source_table = 'condition_occurrence'
                and family_concept_id in (
                    select concept_id from used
                    where source_table = 'condition_occurrence'
                )
            union
            select source_table, concept_id, family_concept_id
            from used
            inner join related using (concept_id)
            inner join ({classes}) using (family_concept_id)
            where source_table = 'drug_exposure'
            qualify class_order = min(class_order) over (partition by concept_id)
        )
        from found
        union
        select source_table, concept_id, concept_id
        from used
        where
            source_table = 'condition_occurrence'
            or concept_id not in (
                select concept_id from found where source_table = 'drug_exposure'
            )
        """


def files_of(folder: Path, table: str) -> list[Path]:
    """Parquet files of a table; raises InputError where one is damaged."""
    files = sorted((folder / table).glob("*.parquet"))
    for file in files:
        check_file(table, file)
    return files


def parquet(files: list[Path]) -> str:
    """Read files, columns by their names."""
    names = ", ".join("'" + str(file).replace("'", "''") + "'" for file in files)
    options = "union_by_name = true, hive_partitioning = false"
    return f"read_parquet([{names}], {options})"
