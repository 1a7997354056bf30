-- One row per condition of a sequence.
with

events as (

    select * from {{ ref('int_events_decoded') }}
    where source_table = 'condition_occurrence'

),

final as (

    select
        cast(event_id as bigint) as condition_occurrence_id,
        cast(person_id as bigint) as person_id,
        cast(concept_id as bigint) as condition_concept_id,
        cast(event_date as date) as condition_start_date,
        -- Without an hour the sum is NULL, and so is the datetime.
        {{ dbt.dateadd('hour', 'hour', 'cast(event_date as timestamp)') }}
            as condition_start_datetime,
        cast(end_date as date) as condition_end_date,
        cast(null as timestamp) as condition_end_datetime,
        cast(type_concept_id as bigint) as condition_type_concept_id,
        cast(null as bigint) as condition_status_concept_id,
        cast(null as string) as stop_reason,
        cast(null as bigint) as provider_id,
        cast(visit_occurrence_id as bigint) as visit_occurrence_id,
        cast(null as bigint) as visit_detail_id,
        cast(null as string) as condition_source_value,
        cast(source_concept_id as bigint)
            as condition_source_concept_id,
        cast(null as string) as condition_status_source_value
    from events

)

select * from final
