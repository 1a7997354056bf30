-- One row per event that came back, with the source row and the source's visit that it
-- was encoded from: position in the sequence is the link.
with

restored as (

    select
        'condition_occurrence' as source_table,
        condition_occurrence_id as event_id,
        person_id,
        visit_occurrence_id,
        condition_concept_id as concept_id,
        condition_source_concept_id as source_concept_id,
        condition_start_date as event_date,
        condition_start_datetime as event_datetime,
        cast(null as bigint) as unit_concept_id,
        cast(null as bigint) as operator_concept_id,
        cast(null as bigint) as value_as_concept_id,
        cast(null as double) as value_as_number,
        cast(null as double) as quantity,
        cast(null as int) as days_supply,
        condition_end_date as end_date
    from {{ ref('condition_occurrence') }}

    union all

    select
        'drug_exposure' as source_table,
        drug_exposure_id as event_id,
        person_id,
        visit_occurrence_id,
        drug_concept_id as concept_id,
        drug_source_concept_id as source_concept_id,
        drug_exposure_start_date as event_date,
        drug_exposure_start_datetime as event_datetime,
        cast(null as bigint) as unit_concept_id,
        cast(null as bigint) as operator_concept_id,
        cast(null as bigint) as value_as_concept_id,
        cast(null as double) as value_as_number,
        quantity,
        days_supply,
        verbatim_end_date as end_date
    from {{ ref('drug_exposure') }}

    union all

    select
        'procedure_occurrence' as source_table,
        procedure_occurrence_id as event_id,
        person_id,
        visit_occurrence_id,
        procedure_concept_id as concept_id,
        procedure_source_concept_id as source_concept_id,
        procedure_date as event_date,
        procedure_datetime as event_datetime,
        cast(null as bigint) as unit_concept_id,
        cast(null as bigint) as operator_concept_id,
        cast(null as bigint) as value_as_concept_id,
        cast(null as double) as value_as_number,
        cast(quantity as double) as quantity,
        cast(null as int) as days_supply,
        procedure_end_date as end_date
    from {{ ref('procedure_occurrence') }}

    union all

    select
        'measurement' as source_table,
        measurement_id as event_id,
        person_id,
        visit_occurrence_id,
        measurement_concept_id as concept_id,
        measurement_source_concept_id as source_concept_id,
        measurement_date as event_date,
        measurement_datetime as event_datetime,
        unit_concept_id,
        operator_concept_id,
        value_as_concept_id,
        value_as_number,
        cast(null as double) as quantity,
        cast(null as int) as days_supply,
        cast(null as date) as end_date
    from {{ ref('measurement') }}

    union all

    select
        'observation' as source_table,
        observation_id as event_id,
        person_id,
        visit_occurrence_id,
        observation_concept_id as concept_id,
        observation_source_concept_id as source_concept_id,
        observation_date as event_date,
        observation_datetime as event_datetime,
        unit_concept_id,
        cast(null as bigint) as operator_concept_id,
        value_as_concept_id,
        value_as_number,
        cast(null as double) as quantity,
        cast(null as int) as days_supply,
        cast(null as date) as end_date
    from {{ ref('observation') }}

    union all

    select
        'device_exposure' as source_table,
        device_exposure_id as event_id,
        person_id,
        visit_occurrence_id,
        device_concept_id as concept_id,
        device_source_concept_id as source_concept_id,
        device_exposure_start_date as event_date,
        device_exposure_start_datetime as event_datetime,
        unit_concept_id,
        cast(null as bigint) as operator_concept_id,
        cast(null as bigint) as value_as_concept_id,
        cast(null as double) as value_as_number,
        cast(quantity as double) as quantity,
        cast(null as int) as days_supply,
        device_exposure_end_date as end_date
    from {{ ref('device_exposure') }}

),

decoded as (

    select * from {{ ref('int_events_decoded') }}

),

timeline_events as (

    select * from {{ ref('events') }}

),

timeline_visits as (

    select * from {{ ref('visits') }}

),

final as (

    select
        restored.source_table,
        timeline_events.source_id,
        restored.person_id,
        restored.visit_occurrence_id is not null as has_visit,
        timeline_visits.visit_occurrence_id,
        restored.concept_id,
        restored.source_concept_id,
        restored.event_date,
        cast(extract(hour from restored.event_datetime) as int) as hour,
        restored.unit_concept_id,
        restored.value_as_number is not null as has_number,
        restored.value_as_number,
        decoded.value_bin,
        restored.operator_concept_id,
        restored.value_as_concept_id,
        restored.quantity is not null as has_quantity,
        restored.quantity,
        decoded.quantity_bin,
        decoded.event_token,
        restored.days_supply,
        restored.end_date
    from restored
    inner join decoded on restored.event_id = decoded.event_id
    left join timeline_events
        on
            decoded.person_id = timeline_events.person_id
            and decoded.visit_order = timeline_events.visit_order
            and decoded.event_order = timeline_events.event_order
    left join timeline_visits
        on
            decoded.person_id = timeline_visits.person_id
            and decoded.visit_order = timeline_visits.visit_order

)

select * from final
