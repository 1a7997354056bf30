-- One row per token of a sequence, with the keys that order it: visit_order, then
-- event_order (0 opens the visit, the largest closes it), then slot.
with

measured as (

    select * from {{ ref('int_days_measured') }}

),

named as (

    select * from {{ ref('int_tokens_named') }}

),

events as (

    select * from {{ ref('int_events_ordered') }}

),

vocabulary as (

    select * from {{ ref('int_vocabulary') }}

),

spelled as (

    select spelled.role, spelled.days, spelled.step, vocabulary.token_id
    from {{ ref('int_days_spelled') }} as spelled
    inner join vocabulary on spelled.token = vocabulary.token

),

-- left joins: what the language cannot say must fail, not vanish
placed as (

    select
        measured.person_id,
        measured.visit_order,
        measured.event_order,
        measured.slot + spelled.step as slot,
        spelled.token_id
    from measured
    left join spelled
        on measured.role = spelled.role and measured.days = spelled.days

    union all

    select
        named.person_id,
        named.visit_order,
        named.event_order,
        named.slot,
        vocabulary.token_id
    from named
    left join vocabulary
        on
            named.kind = vocabulary.kind
            and coalesce(named.number, 0) = coalesce(vocabulary.number, 0)
            and coalesce(named.concept_id, 0) = coalesce(vocabulary.concept_id, 0)

    union all

    select
        events.person_id,
        events.visit_order,
        events.event_order,
        5 as slot,
        vocabulary.token_id
    from events
    left join vocabulary on events.token = vocabulary.token

)

select * from placed
