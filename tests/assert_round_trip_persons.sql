-- Every person of the source comes back with birth year, gender, race and ethnicity,
-- and none else.
{{ config(tags=['round_trip']) }}
with

expected as (

    select
        person_id,
        year_of_birth,
        gender_concept_id,
        race_concept_id,
        ethnicity_concept_id
    from {{ ref('int_persons_checked') }}
    where reason is null

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
