-- One row per device of a sequence.
with

events as (

    select * from {{ ref('int_events_decoded') }}
    where source_table = 'device_exposure'

),

final as (

    select
        cast(event_id as bigint) as device_exposure_id,
        cast(person_id as bigint) as person_id,
        cast(concept_id as bigint) as device_concept_id,
        cast(event_date as date) as device_exposure_start_date,
        -- Without an hour the sum is NULL, and so is the datetime.
        {{ dbt.dateadd('hour', 'hour', 'cast(event_date as timestamp)') }}
            as device_exposure_start_datetime,
        cast(end_date as date) as device_exposure_end_date,
        cast(null as timestamp) as device_exposure_end_datetime,
        cast(type_concept_id as bigint) as device_type_concept_id,
        cast(null as string) as unique_device_id,
        cast(null as string) as production_id,
        -- Whole in CDM 5.4; engines differ in how a cast rounds.
        cast(round(quantity) as int) as quantity,
        cast(null as bigint) as provider_id,
        cast(visit_occurrence_id as bigint) as visit_occurrence_id,
        cast(null as bigint) as visit_detail_id,
        cast(null as string) as device_source_value,
        cast(source_concept_id as bigint)
            as device_source_concept_id,
        cast(unit_concept_id as bigint) as unit_concept_id,
        cast(null as string) as unit_source_value,
        cast(null as bigint) as unit_source_concept_id
    from events

)

select * from final
