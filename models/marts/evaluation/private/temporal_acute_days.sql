-- One row per person, acute condition with a season, and day on which it is told.
-- Months from its peak in the training cohort are those that conditions have in common.
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
        events.person_number,
        conditions.concept_id,
        events.event_date,
        cast(extract(month from events.event_date) as int) as event_month,
        cast(
            (extract(month from events.event_date) - conditions.peak_month + 12) % 12
            as int
        ) as months_from_peak
    from events
    inner join conditions on events.concept_number = conditions.concept_number

)

select * from final
