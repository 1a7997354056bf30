-- Rows: deaths before the end of the last visit or loose day. No sampled sequence can
-- write one; real records hold some.
{{ config(tags=['synthetic_only'], group='decode') }}

with

deaths as (

    select * from {{ ref('death') }}

),

visits as (

    select * from {{ ref('int_visits_decoded') }}

),

last_orders as (

    select
        person_id,
        max(visit_order) as visit_order
    from visits
    group by person_id

)

select
    deaths.person_id,
    deaths.death_date,
    visits.visit_end_date
from deaths
inner join last_orders on deaths.person_id = last_orders.person_id
inner join visits
    on
        last_orders.person_id = visits.person_id
        and last_orders.visit_order = visits.visit_order
where deaths.death_date < coalesce(visits.visit_end_date, visits.visit_start_date)
