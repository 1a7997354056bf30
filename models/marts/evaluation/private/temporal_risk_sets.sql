-- One row per cohort, axis and day on which somebody comes, goes or dies: how many are
-- at risk, how many die.
with

spans as (

    select * from {{ ref('temporal_spans') }}

),

changes as (

    select cohort, axis, day_in as life_day, 1 as step, 0 as deaths
    from spans

    union all

    -- at risk to the end of the last day
    select cohort, axis, day_out + 1 as life_day, -1 as step, 0 as deaths
    from spans

    union all

    select cohort, axis, day_out as life_day, 0 as step, deaths
    from spans

),

daily as (

    select
        cohort,
        axis,
        life_day,
        sum(step) as step,
        sum(deaths) as deaths
    from changes
    group by 1, 2, 3

),

final as (

    select
        cohort,
        axis,
        life_day,
        cast(
            sum(step) over (partition by cohort, axis order by life_day) as bigint
        ) as at_risk,
        cast(deaths as bigint) as deaths
    from daily

)

select * from final
