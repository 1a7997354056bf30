-- One row per number of days in a sequence, with the place in it where the number
-- starts: at most three tokens from `slot` on spell it.
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

gaps as (

    select person_id, visit_order, gap_days as days
    from visits

    union all

    select person_id, {{ last - 1 }} as visit_order, death_gap_days as days
    from persons
    where death_gap_days is not null

),

-- where the events leave the cursor, counted from the start of the visit; a loose
-- day's leave it where it is
last_dates as (

    select person_id, visit_order, max(day_offset) as day_offset
    from events
    group by 1, 2

),

last_moves as (

    select
        visits.person_id,
        visits.visit_order,
        {{ days_between('visits.visit_start_date', 'visits.visit_end_date') }}
        - coalesce(last_dates.day_offset, 0) as days
    from visits
    left join last_dates
        on
            visits.person_id = last_dates.person_id
            and visits.visit_order = last_dates.visit_order

),

measured as (

    select person_id, visit_order, 0 as event_order, 0 as slot, 'gap' as role, days
    from gaps

    union all

    select person_id, visit_order, event_order, 0, 'move', move_days
    from events
    where move_days <> 0

    union all

    select person_id, visit_order, {{ last }}, 0, 'move', days
    from last_moves
    where days <> 0

    union all

    select person_id, visit_order, event_order, 10, 'end', end_days
    from events
    where end_days is not null

)

select * from measured
