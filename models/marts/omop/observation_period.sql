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
        least(visit_start_date, visit_end_date) as first_date,
        greatest(visit_start_date, visit_end_date) as last_date
    from visits
    union all
    select
        person_id,
        event_date as first_date,
        event_date as last_date
    from events
    union all
    select
        person_id,
        death_date as first_date,
        death_date as last_date
    from deaths

),

periods as (

    select
        person_id,
        min(first_date) as start_date,
        max(last_date) as end_date
    from recorded_dates
    group by person_id

),

final as (

    select
        -- One period a person, so the person's id serves.
        cast(periods.person_id as bigint) as observation_period_id,
        cast(periods.person_id as bigint) as person_id,
        cast(periods.start_date as date) as observation_period_start_date,
        cast(periods.end_date as date) as observation_period_end_date,
        cast(type_concepts.type_concept_id as bigint) as period_type_concept_id
    from periods
    left join type_concepts on type_concepts.source_table = 'observation_period'

)

select * from final
order by person_id
