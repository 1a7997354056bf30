-- Every event of the timeline lies in a visit or loose day, and no loose day is empty.
-- In each the events are 1, 2, 3 …, said as the generic test `consecutive` says it,
-- which would group the events once more.
{{ config(tags=['encode']) }}
with

visits as (

    select person_id, visit_order, is_loose from {{ ref('visits') }}

),

event_visits as (

    select
        person_id,
        visit_order,
        count(*) as event_count,
        min(event_order) as first_order,
        max(event_order) as last_order,
        sum(event_order) as order_sum
    from {{ ref('events') }}
    group by 1, 2

)

select
    coalesce(visits.person_id, event_visits.person_id) as person_id,
    coalesce(visits.visit_order, event_visits.visit_order) as visit_order,
    visits.is_loose
from visits
full outer join event_visits
    on
        visits.person_id = event_visits.person_id
        and visits.visit_order = event_visits.visit_order
where
    visits.person_id is null
    or (visits.is_loose and event_visits.person_id is null)
    or event_visits.first_order <> 1
    or event_visits.last_order <> event_visits.event_count
    or 2 * event_visits.order_sum
    <> event_visits.event_count * (1 + event_visits.event_count)
