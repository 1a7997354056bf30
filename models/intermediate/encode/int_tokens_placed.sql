-- One row per token of a sequence, with the keys that order it: visit_order, then
-- event_order (0 opens the visit, the largest closes it), then slot.
{%- set last = 2147483647 %}
with

persons as (

    select * from {{ ref('int_persons_started') }}

),

visits as (

    select * from {{ ref('int_visits_ordered') }}

),

events as (

    select * from {{ ref('int_events_ordered') }}

),

vocabulary as (

    select * from {{ ref('int_vocabulary') }}

),

spelled as (

    select
        spelled.role,
        spelled.days,
        spelled.step,
        vocabulary.token_id
    from {{ ref('int_days_spelled') }} as spelled
    inner join vocabulary on spelled.token = vocabulary.token

),

last_dates as (

    select person_id, visit_order, max(day_offset) as day_offset
    from events
    group by 1, 2

),

-- every number of days in the sequence: at most three tokens from `slot` on
spans as (

    select
        person_id,
        visit_order,
        0 as event_order,
        0 as slot,
        'gap' as role,
        gap_days as days
    from visits

    union all

    select person_id, visit_order, event_order, 0 as slot, 'move' as role, move_days as days
    from events
    where move_days <> 0

    union all

    select person_id, visit_order, event_order, 10 as slot, 'end' as role, end_days as days
    from events
    where end_days is not null

    union all

    select
        visits.person_id,
        visits.visit_order,
        {{ last }} as event_order,
        0 as slot,
        'move' as role,
        {{ dbt.datediff('visits.visit_start_date', 'visits.visit_end_date', 'day') }}
        - coalesce(last_dates.day_offset, 0) as days
    from visits
    left join last_dates
        on
            visits.person_id = last_dates.person_id
            and visits.visit_order = last_dates.visit_order
    where not visits.is_loose

    union all

    select person_id, {{ last - 1 }} as visit_order, 0 as event_order, 0 as slot, 'gap' as role, death_gap_days as days
    from persons
    where death_gap_days is not null

),

-- every token that a key names
named as (

    select person_id, 0 as visit_order, 0 as event_order, 1 as slot, 'bos' as kind, cast(null as bigint) as number, cast(null as bigint) as concept_id
    from persons

    union all

    select person_id, 0, 0, 2, case when start_year is null then 'year_unknown' else 'year' end, start_year, null from persons

    union all

    select person_id, 0, 0, 3, case when age_years is null then 'age_unknown' else 'age' end, age_years, null from persons

    union all

    select person_id, 0, 0, 4, 'gender', null, gender_concept_id from persons

    union all

    select person_id, 0, 0, 5, 'race', null, race_concept_id from persons

    union all

    select person_id, 0, 0, 6, 'ethnicity', null, ethnicity_concept_id from persons

    union all

    select person_id, visit_order, 0, 4, case when is_loose then 'no_visit' else 'visit' end, null, visit_concept_id from visits

    union all

    select person_id, visit_order, event_order, 4, 'hour', hour, null from events where is_new_hour

    union all

    select person_id, visit_order, event_order, 7, 'operator', null, operator_concept_id from events where operator_concept_id is not null

    union all

    select person_id, visit_order, event_order, 8, 'value_concept', null, value_as_concept_id from events where value_as_concept_id is not null

    union all

    select person_id, visit_order, event_order, 10, 'days_supply', days_supply, null from events where days_supply is not null

    union all

    select person_id, visit_order, {{ last }}, 4, 'discharge', null, discharged_to_concept_id from visits where discharged_to_concept_id is not null

    union all

    select person_id, {{ last - 1 }}, 0, 4, 'death', null, null from persons where death_date is not null

    union all

    select person_id, {{ last }}, 0, 1, 'eos', null, null from persons

),

placed as (

    select
        spans.person_id,
        spans.visit_order,
        spans.event_order,
        spans.slot + spelled.step as slot,
        spelled.token_id
    from spans
    -- left join: a number of days that the language cannot say must fail, not vanish
    left join spelled on spans.role = spelled.role and spans.days = spelled.days
    where spans.role = 'gap' or spans.days <> 0 or spans.role = 'end'

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
            and vocabulary.source_table is null

    union all

    select
        events.person_id,
        events.visit_order,
        events.event_order,
        5 as slot,
        vocabulary.token_id
    from events
    left join vocabulary
        on events.token = vocabulary.token

)

select * from placed
