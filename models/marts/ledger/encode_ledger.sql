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
        event_tables.source_table,
        events.reason,
        events.visit_occurrence_id,
        events.has_null_concept,
        events.has_rolled_concept,
        events.has_far_end,
        events.has_no_finite_number,
        events.has_lost_visit
    from {{ ref('int_events_checked') }} as events
    inner join {{ ref('event_tables') }} as event_tables
        on events.table_order = event_tables.table_order

),

encoded_events as (

    select
        event_tokens.source_table,
        count(*) as event_count,
        sum(events.row_count) as row_count,
        count(
            case
                when events.value_as_number is not null and events.value_bin is null
                    then 1
                when events.quantity is not null and events.quantity_bin is null
                    then 1
            end
        ) as unknown_count
    from {{ ref('int_events_ordered') }} as events
    inner join {{ ref('int_event_tokens') }} as event_tokens
        on events.token_order = event_tokens.token_order
    group by 1

),

outcomes as (

    select source_table, reason, count(*) as row_count from persons
    group by 1, 2
    union all
    select source_table, reason, count(*) as row_count from visits
    group by 1, 2
    union all
    select source_table, reason, count(*) as row_count from deaths
    group by 1, 2
    union all
    select source_table, reason, count(*) as row_count from events
    where reason is not null
    group by 1, 2
    union all
    select source_table, null as reason, event_count as row_count
    from encoded_events
    union all
    select
        source_table,
        'repeated_event' as reason,
        row_count - event_count as row_count
    from encoded_events
    where row_count > event_count

),

notes as (

    select source_table, 'null_concept_read_as_0' as reason, count(*) as row_count
    from persons
    where has_null_concept
    group by 1
    union all
    select source_table, 'null_concept_read_as_0' as reason, count(*) as row_count
    from visits
    where has_null_concept
    group by 1
    union all
    select source_table, 'null_concept_read_as_0' as reason, count(*) as row_count
    from events
    where has_null_concept
    group by 1
    union all
    select source_table, 'concept_rolled_up' as reason, count(*) as row_count
    from events
    where reason is null and has_rolled_concept
    group by 1
    union all
    select source_table, 'null_end_read_as_start' as reason, count(*) as row_count
    from visits
    where reason is null and has_null_end
    group by 1
    union all
    select source_table, 'end_outside_language' as reason, count(*) as row_count
    from events
    where reason is null and has_far_end
    group by 1
    union all
    select source_table, 'number_not_finite' as reason, count(*) as row_count
    from events
    where reason is null and has_no_finite_number
    group by 1
    union all
    select source_table, 'number_unknown_in_training' as reason, unknown_count
    from encoded_events
    where unknown_count > 0
    union all
    select source_table, 'visit_not_found' as reason, count(*) as row_count
    from events
    where reason is null and has_lost_visit
    group by 1
    union all
    select source_table, 'without_visit' as reason, count(*) as row_count
    from events
    where reason is null and visit_occurrence_id is null
    group by 1

),

final as (

    select
        source_table,
        case when reason is null then 'encoded' else 'left_out' end as outcome,
        coalesce(reason, 'encoded') as reason,
        cast(row_count as bigint) as row_count
    from outcomes

    union all

    select
        source_table,
        'note' as outcome,
        reason,
        cast(row_count as bigint) as row_count
    from notes

)

select * from final
order by source_table, outcome, reason
