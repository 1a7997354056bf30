-- One row per row of the source table.
with

source as (

    select * from {{ source('omop', 'condition_occurrence') }}

),

typed as (

    select
        cast(condition_occurrence_id as bigint) as condition_occurrence_id,
        cast(person_id as bigint) as person_id,
        cast(condition_concept_id as bigint) as condition_concept_id,
        cast(condition_start_date as date) as condition_start_date,
        cast(condition_start_datetime as timestamp) as condition_start_datetime,
        cast(condition_end_date as date) as condition_end_date,
        cast(visit_occurrence_id as bigint) as visit_occurrence_id,
        cast(condition_type_concept_id as bigint) as condition_type_concept_id,
        cast(condition_source_concept_id as bigint) as condition_source_concept_id
    from source

)

select * from typed
