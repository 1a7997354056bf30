-- One row per row of the source table.
with

source as (

    select * from {{ source('omop', 'measurement') }}

),

typed as (

    select
        cast(measurement_id as bigint) as measurement_id,
        cast(person_id as bigint) as person_id,
        cast(measurement_concept_id as bigint) as measurement_concept_id,
        cast(measurement_date as date) as measurement_date,
        cast(measurement_datetime as timestamp) as measurement_datetime,
        cast(operator_concept_id as bigint) as operator_concept_id,
        cast(value_as_number as double) as value_as_number,
        cast(value_as_concept_id as bigint) as value_as_concept_id,
        cast(unit_concept_id as bigint) as unit_concept_id,
        cast(visit_occurrence_id as bigint) as visit_occurrence_id,
        cast(measurement_type_concept_id as bigint) as measurement_type_concept_id,
        cast(measurement_source_concept_id as bigint) as measurement_source_concept_id
    from source

)

select * from typed
