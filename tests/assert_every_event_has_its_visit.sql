-- Every event of the timeline lies in a visit or loose day, and no loose day is empty.
{{ config(tags=['encode']) }}
with

visits as (

    select person_id, visit_order, is_loose from {{ ref('visits') }}

),

events as (

    select person_id, visit_order from {{ ref('events') }}

)

select 'an event without a visit' as fault, events.person_id, events.visit_order
from events
left join visits
    on events.person_id = visits.person_id and events.visit_order = visits.visit_order
where visits.person_id is null

union all

select 'a loose day without an event' as fault, visits.person_id, visits.visit_order
from visits
left join events
    on visits.person_id = events.person_id and visits.visit_order = events.visit_order
where visits.is_loose and events.person_id is null
