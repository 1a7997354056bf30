-- One row per person and concept that the person has.
with

events as (

    select * from {{ source('cohorts', 'events') }}

),

final as (

    select
        cohort,
        person_id,
        source_table,
        concept_id,
        count(*) as event_count,
        min(event_date) as first_date,
        max(event_date) as last_date
    from events
    group by 1, 2, 3, 4

)

select * from final
