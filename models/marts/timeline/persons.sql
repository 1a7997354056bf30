-- One row per person that is encoded.
with

persons as (

    select * from {{ ref('int_persons_started') }}

),

final as (

    select
        person_id,
        gender_concept_id,
        race_concept_id,
        ethnicity_concept_id,
        year_of_birth,
        death_date,
        split
    from persons

)

select * from final
