-- One row per observation of a sequence.
with

events as (

    select * from {{ ref('int_events_decoded') }}
    where source_table = 'observation'

),

type_concepts as (

    select * from {{ ref('type_concepts') }}

),

final as (

    select
        cast(events.event_id as bigint) as observation_id,
        cast(events.person_id as bigint) as person_id,
        cast(events.concept_id as bigint) as observation_concept_id,
        cast(events.event_date as date) as observation_date,
        -- Without an hour the sum is NULL, and so is the datetime.
        {{ dbt.dateadd('hour', 'events.hour', 'cast(events.event_date as timestamp)') }}
            as observation_datetime,
        cast(type_concepts.type_concept_id as bigint) as observation_type_concept_id,
        cast(events.value_as_number as double) as value_as_number,
        cast(null as string) as value_as_string,
        cast(events.value_as_concept_id as bigint) as value_as_concept_id,
        cast(null as bigint) as qualifier_concept_id,
        cast(events.unit_concept_id as bigint) as unit_concept_id,
        cast(null as bigint) as provider_id,
        cast(events.visit_occurrence_id as bigint) as visit_occurrence_id,
        cast(null as bigint) as visit_detail_id,
        cast(null as string) as observation_source_value,
        cast(events.source_concept_id as bigint)
            as observation_source_concept_id,
        cast(null as string) as unit_source_value,
        cast(null as string) as qualifier_source_value,
        cast(null as string) as value_source_value,
        cast(null as bigint) as observation_event_id,
        cast(null as bigint) as obs_event_field_concept_id
    from events
    left join type_concepts on events.source_table = type_concepts.source_table

)

select * from final
order by observation_id
