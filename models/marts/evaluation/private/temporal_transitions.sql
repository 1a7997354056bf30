-- One row per step of a person's life: from START to the first visit, from a visit to
-- the next one, from the last to END or DEATH.
with

visits as (

    select * from {{ ref('temporal_visits') }}

),

persons as (

    select * from {{ ref('temporal_persons') }}

),

steps as (

    select
        cohort,
        person_number,
        'START' as from_state,
        cast(visit_concept_id as {{ dbt.type_string() }}) as to_state
    from visits
    where visit_order = 1

    union all

    select
        visits.cohort,
        visits.person_number,
        cast(visits.visit_concept_id as {{ dbt.type_string() }}) as from_state,
        case
            when visits.visit_order < visits.visit_count
                then cast(visits.next_visit_concept_id as {{ dbt.type_string() }})
            when persons.death_date is null then 'END'
            else 'DEATH'
        end as to_state
    from visits
    inner join persons on visits.person_number = persons.person_number

),

final as (

    select
        cohort,
        person_number,
        coalesce(from_state, 'UNKNOWN') as from_state,
        coalesce(to_state, 'UNKNOWN') as to_state
    from steps

)

select * from final
