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

events as (

    select
        person_id,
        event_number,
        min(visit_order) as visit_order,
        min(position) as position,
        max(source_table) as source_table,
        max(case when kind = 'event' then concept_id end) as concept_id,
        max(unit_concept_id) as unit_concept_id,
        max(case when kind = 'event' then cursor_date end) as event_date,
        max(case when kind = 'event' then hour end) as hour,
        max(case when kind = 'operator' then concept_id end) as operator_concept_id,
        max(case when kind = 'value_concept' then concept_id end)
            as value_as_concept_id,
        max(case when kind = 'days_supply' then number end) as days_supply,
        sum(case when role = 'end' then days end) as end_days
    from tokens
    group by 1, 2

),

final as (

    select
        persons.events_before + events.event_number as event_id,
        events.person_id,
        events.visit_order,
        cast(
            row_number() over (
                partition by events.person_id, events.visit_order
                order by events.event_number
            ) as int
        ) as event_order,
        events.position,
        events.source_table,
        events.concept_id,
        events.unit_concept_id,
        events.event_date,
        cast(events.hour as int) as hour,
        cast(null as double) as value_as_number,
        events.operator_concept_id,
        events.value_as_concept_id,
        cast(null as double) as quantity,
        cast(events.days_supply as int) as days_supply,
        cast({{ dbt.dateadd(
            'day', 'cast(events.end_days as int)', 'events.event_date'
        ) }} as date) as end_date,
        visits.visit_occurrence_id
    from events
    inner join persons on events.person_id = persons.person_id
    inner join visits
        on
            events.person_id = visits.person_id
            and events.visit_order = visits.visit_order

)

select * from final
