-- One row per visit, with the one that follows. Numbers go on by one within a person.
with

persons as (

    select * from {{ ref('temporal_persons') }}

),

visits as (

    select * from {{ source('cohorts', 'visits') }}

),

joined as (

    select
        persons.cohort,
        persons.person_number,
        persons.visit_count,
        persons.visits_before + visits.visit_order as visit_number,
        visits.visit_order,
        visits.visit_concept_id,
        visits.visit_start_date
    from visits
    inner join persons
        on
            visits.cohort = persons.cohort
            and visits.person_id = persons.person_id

),

numbered as (

    select
        *,
        lead(visit_concept_id) over next_visit as next_visit_concept_id,
        lead(visit_start_date) over next_visit as next_start_date
    from joined
    window next_visit as (partition by person_number order by visit_order)

),

final as (

    select
        cohort,
        person_number,
        visit_number,
        visit_order,
        visit_count,
        visit_concept_id,
        visit_start_date,
        next_visit_concept_id,
        {{ days_between('visit_start_date', 'next_start_date') }} as days
    from numbered

)

select * from final
