-- How many persons of each cohort each prediction task has, by what came true.
with

final as (

    select
        task,
        cohort,
        label,
        count(*) as person_count
    from {{ ref('task_labels') }}
    group by 1, 2, 3

)

select * from final
