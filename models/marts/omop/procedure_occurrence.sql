-- One row per procedure of a sequence.
with

events as (

    select * from {{ ref('int_events_decoded') }}
    where source_table = 'procedure_occurrence'

),

final as (

    select
        cast(event_id as bigint) as procedure_occurrence_id,
        cast(person_id as bigint) as person_id,
        cast(concept_id as bigint) as procedure_concept_id,
        cast(event_date as date) as procedure_date,
        -- Without an hour the sum is NULL, and so is the datetime.
        {{ dbt.dateadd('hour', 'hour', 'cast(event_date as timestamp)') }}
            as procedure_datetime,
        cast(end_date as date) as procedure_end_date,
        cast(null as timestamp) as procedure_end_datetime,
        cast(type_concept_id as bigint) as procedure_type_concept_id,
        cast(null as bigint) as modifier_concept_id,
        -- Whole in CDM 5.4; engines differ in how a cast rounds.
        cast(round(quantity) as int) as quantity,
        cast(null as bigint) as provider_id,
        cast(visit_occurrence_id as bigint) as visit_occurrence_id,
        cast(null as bigint) as visit_detail_id,
        cast(null as string) as procedure_source_value,
        cast(source_concept_id as bigint)
            as procedure_source_concept_id,
        cast(null as string) as modifier_source_value
    from events

)

select * from final
