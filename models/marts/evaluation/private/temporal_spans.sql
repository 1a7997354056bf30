-- One row per axis and person: the days on which a life is observed, and how it ends.
-- Axis age counts days from the first of the year of birth, and who enters late is at
-- risk from then on; axis follow_up counts from the first day that is known.
with

persons as (

    select
        cohort,
        person_number,
        death_date,
        first_date,
        exit_date,
        make_date(year_of_birth, 1, 1) as birth_date
    from {{ ref('temporal_persons') }}
    where first_date <= exit_date and year_of_birth is not null

),

final as (

    select
        cohort,
        person_number,
        'age' as axis,
        {{ days_between('birth_date', 'first_date') }} as day_in,
        {{ days_between('birth_date', 'exit_date') }} as day_out,
        case when death_date is null then 0 else 1 end as deaths
    from persons

    union all

    select
        cohort,
        person_number,
        'follow_up' as axis,
        0 as day_in,
        {{ days_between('first_date', 'exit_date') }} as day_out,
        case when death_date is null then 0 else 1 end as deaths
    from persons

)

select * from final
