-- One row per cohort, measure and value of it: events of a person, and months from the
-- first to the last of them.
with

persons as (

    select * from {{ ref('temporal_persons') }}

),

final as (

    select
        cohort,
        'events' as measure,
        cast(event_count as bigint) as bin,
        count(*) as persons
    from persons
    group by 1, 2, 3

    union all

    select
        cohort,
        'months' as measure,
        cast(
            floor({{ days_between('first_date', 'last_date') }} / 30.4375) as bigint
        ) as bin,
        count(*) as persons
    from persons
    where first_date is not null
    group by 1, 2, 3

)

select * from final
