-- One row per person whose order of events is looked at: all of a cohort, or a sample
-- by hash of a larger one: more persons than these say hardly more beside a holdout.
{%- set most = 20000 %}
with

persons as (

    select * from {{ source('cohorts', 'persons') }}

),

cohorts as (

    select
        cohort,
        count(*) as cohort_persons
    from persons
    group by 1

),

sampled as (

    select persons.*
    from persons
    inner join cohorts on persons.cohort = cohorts.cohort
    where
        cohorts.cohort_persons <= {{ most }}
        or {{ hash_share(['persons.cohort', 'persons.person_id']) }}
        < {{ most }} / cast(cohorts.cohort_persons as double)

),

visits as (

    select
        cohort,
        person_id,
        count(*) as visit_count,
        min(visit_start_date) as first_date,
        max(visit_start_date) as last_date
    from {{ source('cohorts', 'visits') }}
    group by 1, 2

),

events as (

    select
        cohort,
        person_id,
        count(*) as event_count,
        min(event_date) as first_date,
        max(event_date) as last_date
    from {{ source('cohorts', 'events') }}
    group by 1, 2

),

joined as (

    select
        sampled.cohort,
        sampled.person_id,
        sampled.year_of_birth,
        sampled.death_date,
        coalesce(visits.visit_count, 0) as visit_count,
        coalesce(events.event_count, 0) as event_count,
        least(
            coalesce(visits.first_date, events.first_date),
            coalesce(events.first_date, visits.first_date)
        ) as first_date,
        greatest(
            coalesce(visits.last_date, events.last_date),
            coalesce(events.last_date, visits.last_date)
        ) as last_date
    from sampled
    left join visits
        on
            sampled.cohort = visits.cohort
            and sampled.person_id = visits.person_id
    left join events
        on
            sampled.cohort = events.cohort
            and sampled.person_id = events.person_id

),

final as (

    select
        row_number() over (order by cohort, person_id) as person_number,
        cohort,
        person_id,
        year_of_birth,
        death_date,
        visit_count,
        -- so that the visits of all persons can be numbered without sorting them
        cast(
            coalesce(
                sum(visit_count) over (
                    order by cohort, person_id
                    rows between unbounded preceding and 1 preceding
                ),
                0
            ) as bigint
        ) as visits_before,
        event_count,
        first_date,
        last_date,
        -- what is told of later days is an error, not a life
        coalesce(death_date, last_date) as exit_date
    from joined

)

select * from final
