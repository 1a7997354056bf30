-- One row per procedure of a sequence.
with

events as (

    select * from {{ ref('int_events_decoded') }}
    where source_table = 'procedure_occurrence'

),

type_concepts as (

    select * from {{ ref('type_concepts') }}

),

final as (

    select
        cast(events.event_id as bigint) as procedure_occurrence_id,
        cast(events.person_id as bigint) as person_id,
        cast(events.concept_id as bigint) as procedure_concept_id,
        cast(events.event_date as date) as procedure_date,
        -- Without an hour the sum is NULL, and so is the datetime.
        {{ dbt.dateadd('hour', 'events.hour', 'cast(events.event_date as timestamp)') }}
            as procedure_datetime,
        cast(events.end_date as date) as procedure_end_date,
        cast(null as timestamp) as procedure_end_datetime,
        cast(type_concepts.type_concept_id as bigint) as procedure_type_concept_id,
        cast(null as bigint) as modifier_concept_id,
        -- Whole in CDM 5.4; engines differ in how a cast rounds.
        cast(round(events.quantity) as int) as quantity,
        cast(null as bigint) as provider_id,
        cast(events.visit_occurrence_id as bigint) as visit_occurrence_id,
        cast(null as bigint) as visit_detail_id,
        cast(null as string) as procedure_source_value,
        cast(events.source_concept_id as bigint)
            as procedure_source_concept_id,
        cast(null as string) as modifier_source_value
    from events
    left join type_concepts on events.source_table = type_concepts.source_table

)

select * from final
order by procedure_occurrence_id
