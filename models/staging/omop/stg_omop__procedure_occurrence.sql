-- One row per row of the source table.
with

source as (

    select * from {{ source('omop', 'procedure_occurrence') }}

),

typed as (

    select
        cast(procedure_occurrence_id as bigint) as procedure_occurrence_id,
        cast(person_id as bigint) as person_id,
        cast(procedure_concept_id as bigint) as procedure_concept_id,
        cast(procedure_date as date) as procedure_date,
        cast(procedure_datetime as timestamp) as procedure_datetime,
        cast(procedure_end_date as date) as procedure_end_date,
        cast(quantity as double) as quantity,
        cast(visit_occurrence_id as bigint) as visit_occurrence_id,
        cast(procedure_type_concept_id as bigint) as procedure_type_concept_id,
        cast(procedure_source_concept_id as bigint) as procedure_source_concept_id
    from source

)

select * from typed
