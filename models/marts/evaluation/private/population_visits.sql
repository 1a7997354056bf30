-- One row per visit, with the events that it has.
with

visits as (

    select * from {{ source('cohorts', 'visits') }}

),

events as (

    select
        cohort,
        person_id,
        visit_order,
        count(*) as event_count
    from {{ source('cohorts', 'events') }}
    where visit_order is not null
    group by 1, 2, 3

),

persons as (

    select * from {{ source('cohorts', 'persons') }}

),

final as (

    select
        visits.cohort,
        visits.person_id,
        visits.visit_order,
        visits.visit_concept_id,
        visits.visit_start_date,
        visits.visit_end_date - visits.visit_start_date as days,
        cast(extract(year from visits.visit_start_date) as int)
        - persons.year_of_birth as age,
        coalesce(events.event_count, 0) as event_count
    from visits
    inner join persons
        on
            visits.cohort = persons.cohort
            and visits.person_id = persons.person_id
    left join events
        on
            visits.cohort = events.cohort
            and visits.person_id = events.person_id
            and visits.visit_order = events.visit_order

)

select * from final
