-- One row per row of the source table.
with

source as (

    select * from {{ source('omop', 'visit_occurrence') }}

),

typed as (

    select
        cast(visit_occurrence_id as bigint) as visit_occurrence_id,
        cast(person_id as bigint) as person_id,
        cast(visit_concept_id as bigint) as visit_concept_id,
        cast(visit_start_date as date) as visit_start_date,
        cast(visit_end_date as date) as visit_end_date,
        -- CDM 5.2 and 5.3 call it discharge_to_concept_id
        coalesce(
            cast(discharged_to_concept_id as bigint),
            cast(discharge_to_concept_id as bigint)
        ) as discharged_to_concept_id
    from source

)

select * from typed
