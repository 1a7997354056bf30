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

),

missing as (

    select 'missing' as difference, expected.* from expected
    except all
    select 'missing' as difference, restored.* from restored

),

invented as (

    select 'invented' as difference, restored.* from restored
    except all
    select 'invented' as difference, expected.* from expected

)

select * from missing
union all
select * from invented
