-- One row per person, with the number of visits and events before it: ids of rows are
-- counted on from there, so that none is given twice.
with

persons as (

    select * from {{ ref('int_persons_told') }}

),

final as (

    select
        person_id,
        position,
        year_of_birth,
        gender_concept_id,
        race_concept_id,
        ethnicity_concept_id,
        cast(
            sum(visit_count) over (order by person_id) - visit_count as bigint
        ) as visits_before,
        cast(
            sum(event_count) over (order by person_id) - event_count as bigint
        ) as events_before
    from persons

)

select * from final
