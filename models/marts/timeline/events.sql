-- One row per event that is encoded, in order.
with

events as (

    select * from {{ ref('int_events_ordered') }}

),

event_tokens as (

    select * from {{ ref('int_event_tokens') }}

),

final as (

    select
        events.person_id,
        events.visit_order,
        events.event_order,
        event_tokens.source_table,
        events.source_id,
        event_tokens.concept_id,
        event_tokens.unit_concept_id,
        events.event_date,
        events.day_offset,
        events.hour,
        events.value_as_number,
        events.value_bin,
        events.operator_concept_id,
        events.value_as_concept_id,
        events.quantity,
        events.days_supply,
        events.end_date,
        event_tokens.source_concept_id
    from events
    inner join event_tokens on events.token_order = event_tokens.token_order

)

select * from final
