-- One row per cohort, acute condition and month of the year: days on which it is told.
with

conditions as (

    select * from {{ ref('acute_conditions') }}

),

events as (

    select distinct
        cohort,
        person_number,
        concept_number,
        event_date
    from {{ ref('temporal_events') }}

),

final as (

    select
        events.cohort,
        conditions.concept_id,
        cast(extract(month from events.event_date) as int) as event_month,
        count(*) as occurrences
    from events
    inner join conditions on events.concept_number = conditions.concept_number
    group by 1, 2, 3

)

select * from final
