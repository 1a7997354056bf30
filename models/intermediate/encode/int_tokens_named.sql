-- One row per token of a sequence that its kind and a number or a concept name, with
-- its place: every token but those of events and of numbers of days.
{{ config(materialized='view') }}
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

named as (

    select
        person_id,
        0 as visit_order,
        0 as event_order,
        1 as slot,
        'bos' as kind,
        cast(null as bigint) as number,
        cast(null as bigint) as concept_id
    from persons

    union all

    select
        person_id, 0, 0, 2,
        case when start_year is null then 'year_unknown' else 'year' end,
        start_year, null
    from persons

    union all

    select
        person_id, 0, 0, 3,
        case when age_years is null then 'age_unknown' else 'age' end,
        age_years, null
    from persons

    union all

    select person_id, 0, 0, 4, 'gender', null, gender_concept_id
    from persons

    union all

    select person_id, 0, 0, 5, 'race', null, race_concept_id
    from persons

    union all

    select person_id, 0, 0, 6, 'ethnicity', null, ethnicity_concept_id
    from persons

    union all

    select
        person_id, visit_order, 0, 4,
        case when is_loose then 'no_visit' else 'visit' end,
        null, visit_concept_id
    from visits

    union all

    select person_id, visit_order, event_order, 4, 'hour', hour, null
    from events
    where is_new_hour

    union all

    select person_id, visit_order, event_order, 7, 'operator', null, operator_concept_id
    from events
    where operator_concept_id is not null

    union all

    select
        person_id, visit_order, event_order, 8,
        'value_concept', null, value_as_concept_id
    from events
    where value_as_concept_id is not null

    union all

    select person_id, visit_order, event_order, 10, 'days_supply', days_supply, null
    from events
    where days_supply is not null

    union all

    select
        person_id, visit_order, {{ last }}, 4,
        'discharge', null, discharged_to_concept_id
    from visits
    where discharged_to_concept_id is not null

    union all

    select person_id, {{ last - 1 }}, 0, 4, 'death', null, null
    from persons
    where death_date is not null

    union all

    select person_id, {{ last }}, 0, 1, 'eos', null, null
    from persons

)

select * from named
