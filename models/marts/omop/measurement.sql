-- One row per measurement of a sequence.
with

events as (

    select * from {{ ref('int_events_decoded') }}
    where source_table = 'measurement'

),

type_concepts as (

    select * from {{ ref('type_concepts') }}

),

final as (

    select
        cast(events.event_id as bigint) as measurement_id,
        cast(events.person_id as bigint) as person_id,
        cast(events.concept_id as bigint) as measurement_concept_id,
        cast(events.event_date as date) as measurement_date,
        -- Without an hour the sum is NULL, and so is the datetime.
        {{ dbt.dateadd('hour', 'events.hour', 'cast(events.event_date as timestamp)') }}
            as measurement_datetime,
        cast(null as string) as measurement_time,
        cast(type_concepts.type_concept_id as bigint) as measurement_type_concept_id,
        cast(events.operator_concept_id as bigint) as operator_concept_id,
        cast(events.value_as_number as double) as value_as_number,
        cast(events.value_as_concept_id as bigint) as value_as_concept_id,
        cast(events.unit_concept_id as bigint) as unit_concept_id,
        cast(null as double) as range_low,
        cast(null as double) as range_high,
        cast(null as bigint) as provider_id,
        cast(events.visit_occurrence_id as bigint) as visit_occurrence_id,
        cast(null as bigint) as visit_detail_id,
        cast(null as string) as measurement_source_value,
        cast(events.source_concept_id as bigint)
            as measurement_source_concept_id,
        cast(null as string) as unit_source_value,
        cast(null as bigint) as unit_source_concept_id,
        cast(null as string) as value_source_value,
        cast(null as bigint) as measurement_event_id,
        cast(null as bigint) as meas_event_field_concept_id
    from events
    left join type_concepts on events.source_table = type_concepts.source_table

)

select * from final
order by measurement_id
