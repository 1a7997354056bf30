-- One row per cohort and combination of what is known of a person at the first visit.
with

persons as (

    select * from {{ ref('population_persons') }}

),

final as (

    select
        cohort,
        gender_concept_id,
        race_concept_id,
        ethnicity_concept_id,
        age_from,
        decade,
        count(*) as persons
    from persons
    group by 1, 2, 3, 4, 5, 6

)

select * from final
