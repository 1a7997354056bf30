-- One row per event, with the values that follow its token.
with

tokens as (

    select * from {{ ref('int_tokens_typed') }}
    where event_number > 0 and role in ('event', 'value', 'end')

),

persons as (

    select * from {{ ref('int_persons_decoded') }}

),

visits as (

    select * from {{ ref('int_visits_decoded') }}

),

-- of the events that have any: most have none
details as (

    select
        person_id,
        event_number,
        max(case when kind = 'operator' then concept_id end) as operator_concept_id,
        max(case when kind = 'value_concept' then concept_id end)
            as value_as_concept_id,
        max(case when kind = 'number' then number end) as value_bin,
        max(case when kind = 'quantity' then number end) as quantity_bin,
        max(case when kind = 'days_supply' then number end) as days_supply,
        max(case when kind in ('number', 'number_unknown') then 1 else 0 end) = 1
            as has_number,
        max(case when kind in ('quantity', 'quantity_unknown') then 1 else 0 end) = 1
            as has_quantity,
        sum(case when role = 'end' then days end) as end_days
    from tokens
    where role <> 'event'
    group by 1, 2

),

events as (

    select
        tokens.person_id,
        tokens.event_number,
        tokens.visit_order,
        tokens.position,
        tokens.source_table,
        tokens.token as event_token,
        tokens.concept_id,
        tokens.unit_concept_id,
        tokens.source_concept_id,
        tokens.cursor_date as event_date,
        tokens.hour,
        details.operator_concept_id,
        details.value_as_concept_id,
        details.value_bin,
        details.quantity_bin,
        details.days_supply,
        coalesce(details.has_number, false) as has_number,
        coalesce(details.has_quantity, false) as has_quantity,
        details.end_days
    from tokens
    left join details
        on
            tokens.person_id = details.person_id
            and tokens.event_number = details.event_number
    where tokens.role = 'event'

),

bins as (

    select * from {{ ref('stg_generated__value_bins') }}

),

-- where in its bin a number lies: a share of 1, by chance, the same on every run
drawn as (

    select
        *,
        case
            when value_bin is not null
                then {{ hash_share(['person_id', 'position', "'number'"]) }}
        end as number_share,
        case
            when quantity_bin is not null
                then {{ hash_share(['person_id', 'position', "'quantity'"]) }}
        end as quantity_share
    from events

),

final as (

    select
        persons.events_before + events.event_number as event_id,
        events.person_id,
        events.visit_order,
        cast(events.event_number - visits.events_before as int) as event_order,
        events.position,
        events.source_table,
        events.event_token,
        events.concept_id,
        events.unit_concept_id,
        events.source_concept_id,
        events.event_date,
        cast(events.hour as int) as hour,
        {{ number_within('numbers', 'events.number_share') }} as value_as_number,
        cast(events.value_bin as int) as value_bin,
        events.has_number and numbers.bin is null as has_unknown_number,
        events.operator_concept_id,
        events.value_as_concept_id,
        {{ number_within('quantities', 'events.quantity_share') }} as quantity,
        cast(events.quantity_bin as int) as quantity_bin,
        events.has_quantity and quantities.bin is null as has_unknown_quantity,
        cast(events.days_supply as int) as days_supply,
        cast({{ dbt.dateadd(
            'day', 'cast(events.end_days as int)', 'events.event_date'
        ) }} as date) as end_date,
        visits.visit_occurrence_id
    from drawn as events
    inner join persons on events.person_id = persons.person_id
    inner join visits
        on
            events.person_id = visits.person_id
            and events.visit_order = visits.visit_order
    left join bins as numbers
        on
            events.event_token = numbers.event_token
            and events.value_bin = numbers.bin
            and numbers.field = 'number'
    left join bins as quantities
        on
            events.event_token = quantities.event_token
            and events.quantity_bin = quantities.bin
            and quantities.field = 'quantity'

)

select * from final
