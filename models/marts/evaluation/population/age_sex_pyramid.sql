-- One row per cohort, gender and five years of age at the first visit.
with

demographics as (

    select * from {{ ref('demographics') }}

),

counted as (

    select
        cohort,
        gender_concept_id,
        age_from,
        cast(sum(persons) as bigint) as persons
    from demographics
    group by 1, 2, 3

),

final as (

    select
        *,
        persons
        / cast(sum(persons) over (partition by cohort) as double) as share -- noqa: RF04
    from counted

)

select * from final
