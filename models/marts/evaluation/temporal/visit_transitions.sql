-- One row per cohort and pair of states that follow each other: types of visits, START
-- before the first, END or DEATH after the last.
with

steps as (

    select * from {{ ref('temporal_transitions') }}

),

counted as (

    select
        cohort,
        from_state,
        to_state,
        count(*) as transitions
    from steps
    group by 1, 2, 3

),

final as (

    select
        *,
        transitions / cast(
            sum(transitions) over (partition by cohort, from_state) as double
        ) as share -- noqa: RF04
    from counted

)

select * from final
