-- One row per person with a dated row: from the first to the last date of the record.
with

visits as (

    select * from {{ ref('int_visits_decoded') }}
    where not is_loose

),

events as (

    select * from {{ ref('int_events_decoded') }}

),

deaths as (

    select * from {{ ref('int_deaths_decoded') }}

),

type_concepts as (

    select * from {{ ref('type_concepts') }}

),

-- Ends of events are left out: days_supply of 51 years occur, observed is none of them.
recorded_dates as (

    select
        person_id,
        visit_start_date as recorded_date
    from visits
    union all
    select
        person_id,
        visit_end_date as recorded_date
    from visits
    union all
    select
        person_id,
        event_date as recorded_date
    from events
    union all
    select
        person_id,
        death_date as recorded_date
    from deaths

),

final as (

    select
        -- One period a person, so the person's id serves.
        cast(recorded_dates.person_id as bigint) as observation_period_id,
        cast(recorded_dates.person_id as bigint) as person_id,
        cast(min(recorded_dates.recorded_date) as date)
            as observation_period_start_date,
        cast(max(recorded_dates.recorded_date) as date) as observation_period_end_date,
        cast(type_concepts.type_concept_id as bigint) as period_type_concept_id
    from recorded_dates
    left join type_concepts on type_concepts.source_table = 'observation_period'
    group by recorded_dates.person_id, type_concepts.type_concept_id

)

select * from final
order by person_id
