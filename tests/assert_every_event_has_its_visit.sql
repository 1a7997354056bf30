-- Every event of the timeline lies in a visit or loose day, and no loose day is empty.
-- Visits are numbered on from 1 (another test), so an event's number tells whether
-- there is one: no join of all events.
{{ config(tags=['encode']) }}
with

visits as (

    select person_id, visit_order, is_loose from {{ ref('visits') }}

),

events as (

    select person_id, visit_order from {{ ref('events') }}

),

last_visits as (

    select person_id, max(visit_order) as last_order from visits
    group by 1

),

numbers as (

    select
        person_id,
        min(visit_order) as first_order,
        max(visit_order) as last_order,
        count(*) - count(visit_order) as without_number
    from events
    group by 1

),

loose_days as (

    select person_id, visit_order from visits
    where is_loose

),

filled_days as (

    select distinct events.person_id, events.visit_order
    from events
    inner join loose_days
        on
            events.person_id = loose_days.person_id
            and events.visit_order = loose_days.visit_order

)

select
    'an event without a visit' as fault, numbers.person_id,
    numbers.last_order as visit_order
from numbers
left join last_visits on numbers.person_id = last_visits.person_id
where
    last_visits.person_id is null
    or numbers.without_number > 0
    or numbers.first_order < 1
    or numbers.last_order > last_visits.last_order

union all

select
    'a loose day without an event' as fault, loose_days.person_id,
    loose_days.visit_order
from loose_days
left join filled_days
    on
        loose_days.person_id = filled_days.person_id
        and loose_days.visit_order = filled_days.visit_order
where filled_days.person_id is null
