-- One row per person, with the number of visits and events before it: ids of rows are
-- counted on from there, so that none is given twice.
with

tokens as (

    select * from {{ ref('int_tokens_typed') }}

),

persons as (

    select
        person_id,
        min(position) as position,
        max(case when kind = 'year' then number end)
        - max(case when kind = 'age' then number end) as year_of_birth,
        max(case when kind = 'gender' then concept_id end) as gender_concept_id,
        max(case when kind = 'race' then concept_id end) as race_concept_id,
        max(case when kind = 'ethnicity' then concept_id end) as ethnicity_concept_id,
        max(visit_order) as visit_count,
        max(event_number) as event_count
    from tokens
    group by 1

),

final as (

    select
        person_id,
        position,
        cast(year_of_birth as int) as year_of_birth,
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
