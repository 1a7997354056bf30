-- One row per event, with the values that follow its token.
{{ config(post_hook="{{ read_rows('events', columns_of_events()) }}") }}
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

type_concepts as (

    select * from {{ ref('type_concepts') }}

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
        persons.events_before + tokens.event_number as event_id,
        tokens.person_id,
        tokens.visit_order,
        cast(tokens.event_number - visits.events_before as int) as event_order,
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
        cast({{ dbt.dateadd(
            'day', 'cast(details.end_days as int)', 'tokens.cursor_date'
        ) }} as date) as end_date,
        coalesce(
            tokens.cursor_date < visits.visit_start_date
            or tokens.cursor_date > visits.visit_end_date,
            false
        ) as is_outside_its_visit,
        visits.visit_occurrence_id,
        type_concepts.type_concept_id
    from tokens
    inner join persons on tokens.person_id = persons.person_id
    inner join visits
        on
            tokens.person_id = visits.person_id
            and tokens.visit_order = visits.visit_order
    left join details
        on
            tokens.person_id = details.person_id
            and tokens.event_number = details.event_number
    left join type_concepts on tokens.source_table = type_concepts.source_table
    where tokens.role = 'event'

),

{{ events_with_numbers(columns_of_events()) }}
