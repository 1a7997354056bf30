-- One row per row of the source's person table: the first row of each person_id is
-- encoded, the others have a reason.
with

source_persons as (

    select * from {{ ref('stg_omop__person') }}

),

numbered as (

    select
        person_id,
        coalesce(gender_concept_id, 0) as gender_concept_id,
        coalesce(race_concept_id, 0) as race_concept_id,
        coalesce(ethnicity_concept_id, 0) as ethnicity_concept_id,
        year_of_birth,
        gender_concept_id is null
        or race_concept_id is null
        or ethnicity_concept_id is null as has_null_concept,
        row_number() over (
            partition by person_id
            order by
                year_of_birth nulls last,
                gender_concept_id nulls last,
                race_concept_id nulls last,
                ethnicity_concept_id nulls last
        ) as repetition
    from source_persons

),

checked as (

    select
        person_id,
        gender_concept_id,
        race_concept_id,
        ethnicity_concept_id,
        year_of_birth,
        has_null_concept,
        case
            when person_id is null then 'no_person_id'
            when repetition > 1 then 'repeated_person'
        end as reason
    from numbered

)

select * from checked
