-- One row per cohort and check of the order of dates, over all persons: violations.
with

persons as (

    select * from {{ source('cohorts', 'persons') }}

),

visits as (

    select
        *,
        lead(visit_start_date) over (
            partition by cohort, person_id
            order by visit_order
        ) as next_start_date
    from {{ source('cohorts', 'visits') }}

),

events as (

    select
        events.cohort,
        events.event_date,
        persons.year_of_birth,
        persons.death_date,
        visits.visit_start_date,
        -- an end before the start is a fault of its own
        greatest(
            coalesce(visits.visit_end_date, visits.visit_start_date),
            visits.visit_start_date
        ) as visit_end_date
    from {{ source('cohorts', 'events') }} as events
    inner join persons
        on
            events.cohort = persons.cohort
            and events.person_id = persons.person_id
    left join visits
        on
            events.cohort = visits.cohort
            and events.person_id = visits.person_id
            and events.visit_order = visits.visit_order

),

final as (

    select
        cohort,
        'visit_before_the_last' as check_name,
        count(case when next_start_date < visit_start_date then 1 end) as rows_violated,
        count(next_start_date) as denominator
    from visits
    group by 1

    union all

    select
        cohort,
        'visit_end_before_start' as check_name,
        count(case when visit_end_date < visit_start_date then 1 end) as rows_violated,
        count(visit_end_date) as denominator
    from visits
    group by 1

    union all

    select
        cohort,
        'event_outside_visit' as check_name,
        count(
            case
                when {{ days_between('event_date', 'visit_start_date') }} > 7 then 1
                when {{ days_between('visit_end_date', 'event_date') }} > 7 then 1
            end
        ) as rows_violated,
        count(visit_start_date) as denominator
    from events
    group by 1

    union all

    select
        cohort,
        'event_before_birth' as check_name,
        count(
            case when extract(year from event_date) < year_of_birth then 1 end
        ) as rows_violated,
        count(*) as denominator
    from events
    group by 1

    union all

    select
        cohort,
        'event_after_death' as check_name,
        count(case when event_date > death_date then 1 end) as rows_violated,
        count(*) as denominator
    from events
    group by 1

)

select * from final
