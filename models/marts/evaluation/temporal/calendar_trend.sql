-- One row per cohort, year and frequent concept: the share who have it of the persons
-- who have anything that year. Concept 0 of no table: the share of all person-years.
with

concepts as (

    select * from {{ ref('temporal_concepts') }}
    where concept_number <= 150

),

person_years as (

    select distinct
        cohort,
        person_number,
        concept_number,
        cast(extract(year from event_date) as int) as event_year
    from {{ ref('temporal_events') }}

),

active as (

    select
        cohort,
        event_year,
        count(distinct person_number) as active_persons
    from person_years
    group by 1, 2

),

counted as (

    select
        person_years.cohort,
        person_years.event_year,
        concepts.source_table,
        concepts.concept_id,
        count(*) as persons
    from person_years
    inner join concepts on person_years.concept_number = concepts.concept_number
    group by 1, 2, 3, 4

),

final as (

    -- a year without a concept is a share of 0, not a gap in the curve
    select
        active.cohort,
        active.event_year,
        concepts.source_table,
        concepts.concept_id,
        coalesce(counted.persons, 0) as persons,
        active.active_persons,
        coalesce(counted.persons, 0)
        / cast(active.active_persons as double) as share -- noqa: RF04
    from active
    cross join concepts
    left join counted
        on
            active.cohort = counted.cohort
            and active.event_year = counted.event_year
            and concepts.source_table = counted.source_table
            and concepts.concept_id = counted.concept_id

)

select * from final
