-- One row per person and concept: the day on which the person has it first, how often.
with

events as (

    select * from {{ ref('temporal_events') }}

),

final as (

    select
        cohort,
        person_number,
        concept_number,
        min(event_date) as onset_date,
        count(*) as events
    from events
    group by 1, 2, 3

)

select * from final
