-- One row per table, column and concept of what the sequences say, with its rows.
with

counted as (

    {{ concept_counts([
        'person', 'observation_period', 'visit_occurrence', 'condition_occurrence',
        'drug_exposure', 'procedure_occurrence', 'measurement', 'observation',
        'device_exposure', 'death',
    ]) }}
    union all
    -- that of CDM 5.4, which cdm_source names
    select
        'cdm_source' as cdm_table,
        'cdm_version_concept_id' as cdm_field,
        cast(756265 as bigint) as concept_id,
        1 as row_count

)

select * from counted
