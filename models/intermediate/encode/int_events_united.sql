-- One row per row of the six event tables of the source, under common names.
{{ config(materialized='view') }}
with

united as (

    select
        cast('condition_occurrence' as {{ dbt.type_string() }}) as source_table,
        condition_occurrence_id as source_id,
        person_id,
        visit_occurrence_id,
        condition_concept_id as concept_id,
        condition_source_concept_id as source_concept_id,
        condition_type_concept_id as type_concept_id,
        condition_start_date as event_date,
        condition_start_datetime as event_datetime,
        cast(null as bigint) as unit_concept_id,
        cast(null as double) as value_as_number,
        cast(null as bigint) as operator_concept_id,
        cast(null as bigint) as value_as_concept_id,
        cast(null as double) as quantity,
        cast(null as int) as days_supply,
        condition_end_date as end_date
    from {{ ref('stg_omop__condition_occurrence') }}

    union all

    select
        cast('drug_exposure' as {{ dbt.type_string() }}) as source_table,
        drug_exposure_id as source_id,
        person_id,
        visit_occurrence_id,
        drug_concept_id as concept_id,
        drug_source_concept_id as source_concept_id,
        drug_type_concept_id as type_concept_id,
        drug_exposure_start_date as event_date,
        drug_exposure_start_datetime as event_datetime,
        cast(null as bigint) as unit_concept_id,
        cast(null as double) as value_as_number,
        cast(null as bigint) as operator_concept_id,
        cast(null as bigint) as value_as_concept_id,
        quantity,
        days_supply,
        drug_exposure_end_date as end_date
    from {{ ref('stg_omop__drug_exposure') }}

    union all

    select
        cast('procedure_occurrence' as {{ dbt.type_string() }}) as source_table,
        procedure_occurrence_id as source_id,
        person_id,
        visit_occurrence_id,
        procedure_concept_id as concept_id,
        procedure_source_concept_id as source_concept_id,
        procedure_type_concept_id as type_concept_id,
        procedure_date as event_date,
        procedure_datetime as event_datetime,
        cast(null as bigint) as unit_concept_id,
        cast(null as double) as value_as_number,
        cast(null as bigint) as operator_concept_id,
        cast(null as bigint) as value_as_concept_id,
        -- whole in the CDM
        case when abs(quantity) <= 2147483647 then round(quantity) end as quantity,
        cast(null as int) as days_supply,
        procedure_end_date as end_date
    from {{ ref('stg_omop__procedure_occurrence') }}

    union all

    select
        cast('measurement' as {{ dbt.type_string() }}) as source_table,
        measurement_id as source_id,
        person_id,
        visit_occurrence_id,
        measurement_concept_id as concept_id,
        measurement_source_concept_id as source_concept_id,
        measurement_type_concept_id as type_concept_id,
        measurement_date as event_date,
        measurement_datetime as event_datetime,
        unit_concept_id,
        value_as_number,
        operator_concept_id,
        value_as_concept_id,
        cast(null as double) as quantity,
        cast(null as int) as days_supply,
        cast(null as date) as end_date
    from {{ ref('stg_omop__measurement') }}

    union all

    select
        cast('observation' as {{ dbt.type_string() }}) as source_table,
        observation_id as source_id,
        person_id,
        visit_occurrence_id,
        observation_concept_id as concept_id,
        observation_source_concept_id as source_concept_id,
        observation_type_concept_id as type_concept_id,
        observation_date as event_date,
        observation_datetime as event_datetime,
        unit_concept_id,
        value_as_number,
        cast(null as bigint) as operator_concept_id,
        value_as_concept_id,
        cast(null as double) as quantity,
        cast(null as int) as days_supply,
        cast(null as date) as end_date
    from {{ ref('stg_omop__observation') }}

    union all

    select
        cast('device_exposure' as {{ dbt.type_string() }}) as source_table,
        device_exposure_id as source_id,
        person_id,
        visit_occurrence_id,
        device_concept_id as concept_id,
        device_source_concept_id as source_concept_id,
        device_type_concept_id as type_concept_id,
        device_exposure_start_date as event_date,
        device_exposure_start_datetime as event_datetime,
        unit_concept_id,
        cast(null as double) as value_as_number,
        cast(null as bigint) as operator_concept_id,
        cast(null as bigint) as value_as_concept_id,
        -- whole in the CDM
        case when abs(quantity) <= 2147483647 then round(quantity) end as quantity,
        cast(null as int) as days_supply,
        device_exposure_end_date as end_date
    from {{ ref('stg_omop__device_exposure') }}

)

select * from united
