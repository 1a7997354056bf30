-- One row per visit and concept that it has.
with

events as (

    select * from {{ ref('temporal_events') }}

),

final as (

    select distinct
        cohort,
        person_number,
        visit_number,
        concept_number
    from events
    where visit_number is not null

)

select * from final
