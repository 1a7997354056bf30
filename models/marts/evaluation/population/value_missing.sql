-- One row per cohort and concept of the tables with numbers: how many rows have one.
with

events as (

    select * from {{ source('cohorts', 'events') }}

),

counted as (

    select
        cohort,
        source_table,
        concept_id,
        count(*) as row_count,
        count(value_as_number) as value_count
    from events
    where source_table in ('measurement', 'observation')
    group by 1, 2, 3

),

final as (

    select
        *,
        1 - value_count / cast(row_count as double) as missing_share
    from counted

)

select * from final
