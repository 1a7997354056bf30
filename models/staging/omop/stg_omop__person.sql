-- One row per row of the source table.
with

source as (

    select * from {{ source('omop', 'person') }}

),

typed as (

    select
        cast(person_id as bigint) as person_id,
        cast(gender_concept_id as bigint) as gender_concept_id,
        cast(year_of_birth as int) as year_of_birth,
        cast(month_of_birth as int) as month_of_birth,
        cast(day_of_birth as int) as day_of_birth,
        cast(race_concept_id as bigint) as race_concept_id,
        cast(ethnicity_concept_id as bigint) as ethnicity_concept_id
    from source

)

select * from typed
