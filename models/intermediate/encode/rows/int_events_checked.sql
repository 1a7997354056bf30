-- One row per row of the source's six event tables, with the visit that it belongs to:
-- encoded, or with a reason. A field that is switched off is NULL from here on.
{%- set longest = var('longest_days') %}
{%- set end_days = days_between('events.event_date', 'events.end_date') %}
with

events as (

    select * from {{ ref('int_events_chosen') }}

),

event_tables as (

    select * from {{ ref('event_tables') }}

),

persons as (

    select * from {{ ref('int_persons_checked') }}
    where reason is null

),

visits as (

    select * from {{ ref('int_visits_checked') }}
    where reason is null and repetition = 1

),

spans as (

    select * from {{ ref('int_spans_chosen') }}

),

fields as (

    select * from {{ ref('int_fields_pivoted') }}

),

checked as (

    select
        event_tables.table_order,
        events.source_id,
        events.person_id,
        persons.part,
        -- a visit of another person, or one that is not there, is no visit
        visits.visit_occurrence_id,
        events.concept_id,
        events.source_concept_id,
        events.event_date,
        case when fields.has_unit then events.unit_concept_id end as unit_concept_id,
        -- the time of day is used only where it says something
        case
            when
                fields.has_hour
                and cast(events.event_datetime as date) = events.event_date
                and events.event_datetime
                <> cast(cast(events.event_datetime as date) as timestamp)
                then cast(extract(hour from events.event_datetime) as int)
        end as hour,
        case
            when
                fields.has_number
                and {{ is_finite('events.value_as_number') }}
                then events.value_as_number
        end as value_as_number,
        case when fields.has_operator then events.operator_concept_id end
            as operator_concept_id,
        case when fields.has_value_concept then events.value_as_concept_id end
            as value_as_concept_id,
        case
            when fields.has_quantity and {{ is_finite('events.quantity') }}
                then events.quantity
        end as quantity,
        case when fields.has_days_supply then events.days_supply end as days_supply,
        -- an end beyond the language (9999-12-31, mostly) is no end, and counted
        case
            when fields.has_end and abs({{ end_days }}) <= {{ longest }}
                then events.end_date
        end as end_date,
        fields.has_end and abs({{ end_days }}) > {{ longest }} as has_far_end,
        (fields.has_number and not {{ is_finite('events.value_as_number') }})
        or (fields.has_quantity and not {{ is_finite('events.quantity') }})
            as has_no_finite_number,
        events.has_rolled_concept,
        events.has_null_concept,
        events.visit_occurrence_id is not null
        and visits.visit_occurrence_id is null as has_lost_visit,
        case
            when persons.person_id is null then 'unknown_person'
            when events.event_date is null then 'no_date'
            when events.event_date not between spans.first_date and spans.last_date
                then 'outside_language'
            else events.reason
        end as reason
    from events
    cross join fields
    inner join event_tables on events.source_table = event_tables.source_table
    left join persons on events.person_id = persons.person_id
    left join spans on events.person_id = spans.person_id
    left join visits
        on
            events.person_id = visits.person_id
            and events.visit_occurrence_id = visits.visit_occurrence_id

)

select * from checked
