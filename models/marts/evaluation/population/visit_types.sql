-- One row per cohort, visit type and ten years of age at the visit.
with

visits as (

    select * from {{ ref('population_visits') }}

),

counted as (

    select
        cohort,
        visit_concept_id,
        10 * cast(floor(age / 10.0) as int) as age_from,
        count(*) as visits
    from visits
    group by 1, 2, 3

),

final as (

    select
        *,
        visits
        / cast(sum(visits) over (partition by cohort) as double) as share -- noqa: RF04
    from counted

)

select * from final
