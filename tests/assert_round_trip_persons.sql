-- Every person of the source comes back with birth year, gender, race and ethnicity, as
-- the first of its rows has them, and none else.
{{ config(tags=['round_trip']) }}
with

numbered as (

    select
        *,
        row_number() over (
            partition by person_id
            order by
                year_of_birth nulls last,
                gender_concept_id nulls last,
                race_concept_id nulls last,
                ethnicity_concept_id nulls last
        ) as repetition
    from {{ ref('stg_omop__person') }}
    where person_id is not null

),

expected as (

    select
        person_id,
        year_of_birth,
        coalesce(gender_concept_id, 0) as gender_concept_id,
        coalesce(race_concept_id, 0) as race_concept_id,
        coalesce(ethnicity_concept_id, 0) as ethnicity_concept_id
    from numbered
    where repetition = 1

),

restored as (

    select
        person_id,
        year_of_birth,
        gender_concept_id,
        race_concept_id,
        ethnicity_concept_id
    from {{ ref('person') }}

)

{{ differences('expected', 'restored') }}
