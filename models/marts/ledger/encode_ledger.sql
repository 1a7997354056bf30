-- One row per source table, outcome and reason. `encoded` and `left_out` add up to the
-- rows of the table; a `note` counts rows again that were read in a way worth knowing.
with

persons as (

    select 'person' as source_table, reason, has_null_concept
    from {{ ref('int_persons_checked') }}

),

visits as (

    select
        'visit_occurrence' as source_table,
        reason,
        has_null_concept,
        has_null_end
    from {{ ref('int_visits_checked') }}

),

deaths as (

    select 'death' as source_table, reason
    from {{ ref('int_deaths_checked') }}

),

events as (

    select
        source_table,
        reason,
        visit_occurrence_id,
        has_null_concept,
        has_far_end,
        has_lost_visit
    from {{ ref('int_events_checked') }}

),

outcomes as (

    select source_table, reason from persons
    union all
    select source_table, reason from visits
    union all
    select source_table, reason from deaths
    union all
    select source_table, reason from events

),

notes as (

    select source_table, 'null_concept_read_as_0' as reason
    from persons
    where has_null_concept
    union all
    select source_table, 'null_concept_read_as_0' as reason
    from visits
    where has_null_concept
    union all
    select source_table, 'null_concept_read_as_0' as reason
    from events
    where has_null_concept
    union all
    select source_table, 'null_end_read_as_start' as reason
    from visits
    where reason is null and has_null_end
    union all
    select source_table, 'end_outside_language' as reason
    from events
    where reason is null and has_far_end
    union all
    select source_table, 'visit_not_found' as reason
    from events
    where reason is null and has_lost_visit
    union all
    select source_table, 'without_visit' as reason
    from events
    where reason is null and visit_occurrence_id is null

),

final as (

    select
        source_table,
        case when reason is null then 'encoded' else 'left_out' end as outcome,
        coalesce(reason, 'encoded') as reason,
        count(*) as row_count
    from outcomes
    group by 1, 2, 3

    union all

    select source_table, 'note' as outcome, reason, count(*) as row_count
    from notes
    group by 1, 2, 3

)

select * from final
order by source_table, outcome, reason
