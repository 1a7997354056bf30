-- One row per event that is encoded, in the order of the sequence within its visit.
{{ config(materialized='view') }}
-- depends_on: {{ ref('int_histories_ordered') }}
with

events as (

    select
        person_id,
        visit_order,
        event_order,
        token_order,
        source_id,
        row_count,
        event_date,
        day_offset,
        hour,
        value_as_number,
        value_bin,
        operator_concept_id,
        value_as_concept_id,
        quantity,
        quantity_bin,
        days_supply,
        end_date
    from {{ ordered('events') }}

){%- if has_before() %},

united_with_kept as (

    select * from events
    union all by name
    select
        earlier.person_id,
        earlier.visit_order,
        earlier.event_order,
        event_tokens.token_order,
        earlier.source_id,
        -- was counted when it was encoded
        cast(null as int) as row_count,
        earlier.event_date,
        earlier.day_offset,
        earlier.hour,
        earlier.value_as_number,
        earlier.value_bin,
        earlier.operator_concept_id,
        earlier.value_as_concept_id,
        earlier.quantity,
        bins.bin as quantity_bin,
        earlier.days_supply,
        earlier.end_date
    from {{ before_file('events') }} as earlier
    inner join {{ ref('int_persons_kept') }} as kept
        on earlier.person_id = kept.person_id
    inner join {{ ref('int_event_tokens') }} as event_tokens
        on
            earlier.source_table = event_tokens.source_table
            and earlier.concept_id = event_tokens.concept_id
            and earlier.unit_concept_id
            is not distinct from event_tokens.unit_concept_id
            and earlier.source_concept_id
            is not distinct from event_tokens.source_concept_id
    left join {{ ref('int_value_bins') }} as bins
        on
            event_tokens.token_order = bins.token_order
            and bins.field = 'quantity'
            and earlier.quantity >= coalesce(bins.low, earlier.quantity)
            and (earlier.quantity < bins.high or bins.high is null)

)

select * from united_with_kept
{%- else %}

    select * from events
{%- endif %}
