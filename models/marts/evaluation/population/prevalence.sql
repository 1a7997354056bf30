-- One row per cohort and concept: the share of persons who have it.
with

concepts as (

    select * from {{ ref('population_concepts') }}

),

cohorts as (

    select
        cohort,
        count(*) as cohort_persons
    from {{ ref('population_persons') }}
    group by 1

),

counted as (

    select
        cohort,
        source_table,
        concept_id,
        count(*) as persons,
        cast(sum(event_count) as bigint) as events
    from concepts
    group by 1, 2, 3

),

final as (

    select
        counted.cohort,
        counted.source_table,
        counted.concept_id,
        counted.persons,
        counted.events,
        cohorts.cohort_persons,
        counted.persons / cast(cohorts.cohort_persons as double) as share -- noqa: RF04
    from counted
    inner join cohorts on counted.cohort = cohorts.cohort

)

select * from final
