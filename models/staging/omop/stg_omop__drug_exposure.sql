-- One row per row of the source table.
with

source as (

    select * from {{ source('omop', 'drug_exposure') }}

),

typed as (

    select
        cast(drug_exposure_id as bigint) as drug_exposure_id,
        cast(person_id as bigint) as person_id,
        cast(drug_concept_id as bigint) as drug_concept_id,
        cast(drug_exposure_start_date as date) as drug_exposure_start_date,
        cast(drug_exposure_start_datetime as timestamp) as drug_exposure_start_datetime,
        cast(drug_exposure_end_date as date) as drug_exposure_end_date,
        cast(quantity as double) as quantity,
        cast(days_supply as int) as days_supply,
        cast(visit_occurrence_id as bigint) as visit_occurrence_id,
        cast(drug_type_concept_id as bigint) as drug_type_concept_id,
        cast(drug_source_concept_id as bigint) as drug_source_concept_id
    from source

)

select * from typed
