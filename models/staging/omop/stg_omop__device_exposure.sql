-- One row per row of the source table.
with

source as (

    select * from {{ source('omop', 'device_exposure') }}

),

typed as (

    select
        cast(device_exposure_id as bigint) as device_exposure_id,
        cast(person_id as bigint) as person_id,
        cast(device_concept_id as bigint) as device_concept_id,
        cast(device_exposure_start_date as date) as device_exposure_start_date,
        cast(device_exposure_start_datetime as timestamp)
            as device_exposure_start_datetime,
        cast(device_exposure_end_date as date) as device_exposure_end_date,
        cast(quantity as double) as quantity,
        cast(unit_concept_id as bigint) as unit_concept_id,
        cast(visit_occurrence_id as bigint) as visit_occurrence_id,
        cast(device_type_concept_id as bigint) as device_type_concept_id,
        cast(device_source_concept_id as bigint) as device_source_concept_id
    from source

)

select * from typed
