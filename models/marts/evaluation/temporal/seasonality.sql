-- One row per cohort, acute condition and month of the year: days on which it is told.
with

days as (

    select * from {{ ref('temporal_acute_days') }}

),

final as (

    select
        cohort,
        concept_id,
        event_month,
        months_from_peak,
        count(*) as occurrences
    from days
    group by 1, 2, 3, 4

)

select * from final
