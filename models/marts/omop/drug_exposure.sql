-- One row per drug of a sequence.
with

events as (

    select * from {{ ref('int_events_decoded') }}
    where source_table = 'drug_exposure'

),

final as (

    select
        cast(event_id as bigint) as drug_exposure_id,
        cast(person_id as bigint) as person_id,
        cast(concept_id as bigint) as drug_concept_id,
        cast(event_date as date) as drug_exposure_start_date,
        -- Without an hour the sum is NULL, and so is the datetime.
        {{ dbt.dateadd('hour', 'hour', 'cast(event_date as timestamp)') }}
            as drug_exposure_start_datetime,
        -- CDM 5.4 wants an end: the one written, else the last day of the supply,
        -- else the start. The written one alone is verbatim.
        cast(
            case
                when end_date is not null then end_date
                when days_supply >= 1
                    then {{ dbt.dateadd(
                        'day', '(days_supply - 1)', 'event_date'
                    ) }}
                else event_date
            end as date
        ) as drug_exposure_end_date,
        cast(null as timestamp) as drug_exposure_end_datetime,
        cast(end_date as date) as verbatim_end_date,
        cast(type_concept_id as bigint) as drug_type_concept_id,
        cast(null as string) as stop_reason,
        cast(null as int) as refills,
        cast(quantity as double) as quantity,
        cast(days_supply as int) as days_supply,
        cast(null as string) as sig,
        cast(null as bigint) as route_concept_id,
        cast(null as string) as lot_number,
        cast(null as bigint) as provider_id,
        cast(visit_occurrence_id as bigint) as visit_occurrence_id,
        cast(null as bigint) as visit_detail_id,
        cast(null as string) as drug_source_value,
        cast(source_concept_id as bigint)
            as drug_source_concept_id,
        cast(null as string) as route_source_value,
        cast(null as string) as dose_unit_source_value
    from events

)

select * from final
