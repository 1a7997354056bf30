-- One row per cohort, measure, visit type and whole number: how often it occurs.
with

persons as (

    select * from {{ ref('population_persons') }}

),

visits as (

    select * from {{ ref('population_visits') }}

),

final as (

    select
        cohort,
        'visits_per_person' as measure,
        cast(null as bigint) as visit_concept_id,
        cast(visit_count as bigint) as bin,
        count(*) as frequency
    from persons
    group by 1, 2, 3, 4

    union all

    select
        cohort,
        'concepts_per_person' as measure,
        cast(null as bigint) as visit_concept_id,
        cast(concept_count as bigint) as bin,
        count(*) as frequency
    from persons
    group by 1, 2, 3, 4

    union all

    select
        cohort,
        'events_per_visit' as measure,
        cast(null as bigint) as visit_concept_id,
        cast(event_count as bigint) as bin,
        count(*) as frequency
    from visits
    group by 1, 2, 3, 4

    union all

    select
        cohort,
        'length_of_stay' as measure,
        visit_concept_id,
        -- an end before the start is an error of the source, not a shorter stay
        cast(case when days > 0 then days else 0 end as bigint) as bin,
        count(*) as frequency
    from visits
    where days is not null
    group by 1, 2, 3, 4

)

select * from final
