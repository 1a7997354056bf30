-- One row per cohort and rule of time: persons whom it is about, and who break it.
with

persons as (

    select * from {{ ref('population_persons') }}

),

final as (

    select
        cohort,
        'after_death' as rule_name,
        count(case when last_date > death_date then 1 end) as persons_violating,
        count(*) as persons
    from persons
    where death_date is not null
    group by 1, 2

    union all

    select
        cohort,
        'before_birth' as rule_name,
        count(case when extract(year from first_date) < year_of_birth then 1 end)
            as persons_violating,
        count(*) as persons
    from persons
    where first_date is not null
    group by 1, 2

)

select * from final
