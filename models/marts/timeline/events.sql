-- One row per event that is encoded, in order.
with

events as (

    select * from {{ ref('int_events_ordered') }}

),

final as (

    select
        person_id,
        visit_order,
        event_order,
        source_table,
        source_id,
        concept_id,
        unit_concept_id,
        event_date,
        day_offset,
        hour,
        value_as_number,
        value_bin,
        operator_concept_id,
        value_as_concept_id,
        quantity,
        days_supply,
        end_date
    from events

)

select * from final
order by person_id, visit_order, event_order
