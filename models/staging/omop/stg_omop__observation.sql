-- One row per row of the source table.
with

source as (

    select * from {{ source('omop', 'observation') }}

),

typed as (

    select
        cast(observation_id as bigint) as observation_id,
        cast(person_id as bigint) as person_id,
        cast(observation_concept_id as bigint) as observation_concept_id,
        cast(observation_date as date) as observation_date,
        cast(observation_datetime as timestamp) as observation_datetime,
        cast(value_as_number as double) as value_as_number,
        cast(value_as_concept_id as bigint) as value_as_concept_id,
        cast(unit_concept_id as bigint) as unit_concept_id,
        cast(visit_occurrence_id as bigint) as visit_occurrence_id,
        cast(observation_type_concept_id as bigint) as observation_type_concept_id,
        cast(observation_source_concept_id as bigint) as observation_source_concept_id
    from source

)

select * from typed
