-- One row per observation of a sequence.
with

events as (

    select * from {{ ref('int_events_decoded') }}
    where source_table = 'observation'

),

final as (

    select
        cast(event_id as bigint) as observation_id,
        cast(person_id as bigint) as person_id,
        cast(concept_id as bigint) as observation_concept_id,
        cast(event_date as date) as observation_date,
        -- Without an hour the sum is NULL, and so is the datetime.
        {{ dbt.dateadd('hour', 'hour', 'cast(event_date as timestamp)') }}
            as observation_datetime,
        cast(type_concept_id as bigint) as observation_type_concept_id,
        cast(value_as_number as double) as value_as_number,
        cast(null as string) as value_as_string,
        cast(value_as_concept_id as bigint) as value_as_concept_id,
        cast(null as bigint) as qualifier_concept_id,
        cast(unit_concept_id as bigint) as unit_concept_id,
        cast(null as bigint) as provider_id,
        cast(visit_occurrence_id as bigint) as visit_occurrence_id,
        cast(null as bigint) as visit_detail_id,
        cast(null as string) as observation_source_value,
        cast(source_concept_id as bigint)
            as observation_source_concept_id,
        cast(null as string) as unit_source_value,
        cast(null as string) as qualifier_source_value,
        cast(null as string) as value_source_value,
        cast(null as bigint) as observation_event_id,
        cast(null as bigint) as obs_event_field_concept_id
    from events

)

select * from final
