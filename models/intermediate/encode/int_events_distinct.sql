-- One row per event that is encoded: rows of the source that repeat one another in all
-- that is written of them are one, known by the smallest id.
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
        min(events.source_id) as source_id,
        count(*) as row_count
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
    group by 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11

)

select * from final
