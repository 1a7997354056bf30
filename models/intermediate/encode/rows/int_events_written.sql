-- One row per row of the source's event tables that is encoded, as it is written: with
-- its event token and with dates on the person's grid. Rows may repeat one another.
{{ config(materialized='view') }}
-- depends_on: {{ ref('int_persons_anchored') }}
with

events as (

    select * from {{ ref('int_events_checked') }}
    where reason is null and {{ is_new('person_id') }}

),

event_tokens as (

    select * from {{ ref('int_event_tokens') }}

),

final as (

    select
        events.person_id,
        events.part,
        events.visit_occurrence_id,
        event_tokens.token_order,
        {{ coarse_date('events.event_date', 'anchors.anchor_date') }} as event_date,
        events.hour,
        events.value_as_number,
        events.operator_concept_id,
        events.value_as_concept_id,
        events.quantity,
        events.days_supply,
        {{ coarse_date('events.end_date', 'anchors.anchor_date') }} as end_date,
        events.source_id
    from events
    inner join event_tokens
        on
            events.table_order = event_tokens.table_order
            and events.concept_id = event_tokens.concept_id
            and events.unit_concept_id is not distinct from event_tokens.unit_concept_id
            and events.source_concept_id
            is not distinct from event_tokens.source_concept_id
    {%- if var('att_type') != 'day' %}
    inner join {{ ref('int_persons_anchored') }} as anchors
        on events.person_id = anchors.person_id
    {%- endif %}

)

select * from final
