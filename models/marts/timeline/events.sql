-- One row per event that is encoded, in order.
-- depends_on: {{ ref('int_persons_started') }}
with

events as (

    select * from {{ ref('int_events_ordered') }}

),

-- one row, with what each token means: a join would lose the order of the events
meanings as (

    select
        {{ collect('source_table', 'token_order') }} as source_tables,
        {{ collect('concept_id', 'token_order') }} as concept_ids,
        {{ collect('unit_concept_id', 'token_order') }} as unit_concept_ids,
        {{ collect('source_concept_id', 'token_order') }} as source_concept_ids
    from {{ ref('int_event_tokens') }}

),

final as (

    select
        events.person_id,
        events.visit_order,
        events.event_order,
        {{ array_get('meanings.source_tables', 'events.token_order - 1') }}
            as source_table,
        events.source_id,
        {{ array_get('meanings.concept_ids', 'events.token_order - 1') }}
            as concept_id,
        {{ array_get('meanings.unit_concept_ids', 'events.token_order - 1') }}
            as unit_concept_id,
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
        {{ array_get('meanings.source_concept_ids', 'events.token_order - 1') }}
            as source_concept_id
    from events
    cross join meanings

)

select * from final
