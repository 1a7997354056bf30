-- One row per cohort, visit type and table: its share of the events of such visits.
with

events as (

    select * from {{ source('cohorts', 'events') }}

),

visits as (

    select * from {{ ref('population_visits') }}

),

counted as (

    select
        visits.cohort,
        visits.visit_concept_id,
        events.source_table,
        count(*) as events
    from events
    inner join visits
        on
            events.cohort = visits.cohort
            and events.person_id = visits.person_id
            and events.visit_order = visits.visit_order
    group by 1, 2, 3

),

final as (

    select
        *,
        events / cast(
            sum(events) over (partition by cohort, visit_concept_id) as double
        ) as share -- noqa: RF04
    from counted

)

select * from final
