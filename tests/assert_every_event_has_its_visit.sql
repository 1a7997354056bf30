-- Every event of the timeline lies in a visit or loose day, and no loose day is empty.
{{ config(tags=['encode']) }}
with

visits as (

    select person_id, visit_order, is_loose from {{ ref('visits') }}

),

event_visits as (

    select distinct person_id, visit_order from {{ ref('events') }}

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
