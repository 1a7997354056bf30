-- One row per cohort, axis and day on which somebody comes, goes or dies: how many are
-- at risk, how many die.
-- Axis age counts days from the first of the year of birth, and who enters late is at
-- risk from then on; axis follow_up counts from the first day that is known.
with

persons as (

    select
        cohort,
        death_date,
        first_date,
        exit_date,
        make_date(year_of_birth, 1, 1) as birth_date
    from {{ ref('temporal_persons') }}
    where first_date <= exit_date and year_of_birth is not null

),

spans as (

    select
        cohort,
        'age' as axis,
        {{ days_between('birth_date', 'first_date') }} as day_in,
        {{ days_between('birth_date', 'exit_date') }} as day_out,
        case when death_date is null then 0 else 1 end as deaths
    from persons

    union all

    select
        cohort,
        'follow_up' as axis,
        0 as day_in,
        {{ days_between('first_date', 'exit_date') }} as day_out,
        case when death_date is null then 0 else 1 end as deaths
    from persons

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
