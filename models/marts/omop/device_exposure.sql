-- One row per device of a sequence.
with

events as (

    select * from {{ ref('int_events_decoded') }}
    where source_table = 'device_exposure'

),

type_concepts as (

    select * from {{ ref('type_concepts') }}

),

final as (

    select
        cast(events.event_id as bigint) as device_exposure_id,
        cast(events.person_id as bigint) as person_id,
        cast(events.concept_id as bigint) as device_concept_id,
        cast(events.event_date as date) as device_exposure_start_date,
        -- Without an hour the sum is NULL, and so is the datetime.
        {{ dbt.dateadd('hour', 'events.hour', 'cast(events.event_date as timestamp)') }}
            as device_exposure_start_datetime,
        cast(events.end_date as date) as device_exposure_end_date,
        cast(null as timestamp) as device_exposure_end_datetime,
        cast(type_concepts.type_concept_id as bigint) as device_type_concept_id,
        cast(null as string) as unique_device_id,
        cast(null as string) as production_id,
        -- Whole in CDM 5.4; engines differ in how a cast rounds.
        cast(round(events.quantity) as int) as quantity,
        cast(null as bigint) as provider_id,
        cast(events.visit_occurrence_id as bigint) as visit_occurrence_id,
        cast(null as bigint) as visit_detail_id,
        cast(null as string) as device_source_value,
        cast(events.source_concept_id as bigint)
            as device_source_concept_id,
        cast(events.unit_concept_id as bigint) as unit_concept_id,
        cast(null as string) as unit_source_value,
        cast(null as bigint) as unit_source_concept_id
    from events
    left join type_concepts on events.source_table = type_concepts.source_table

)

select * from final
order by device_exposure_id
