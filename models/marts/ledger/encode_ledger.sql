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

-- counted in one pass: there are many
events as (

    select
        event_tables.source_table,
        counted.*
    from (
        select
            table_order,
            reason,
            count(*) as row_count,
            {%- for flag in [
                'has_null_concept', 'has_rolled_concept', 'has_far_end',
                'has_no_finite_number', 'has_lost_visit',
            ] %}
                count(case when {{ flag }} then 1 end) as {{ flag }},
            {%- endfor %}
            count(case when visit_occurrence_id is null then 1 end) as has_no_visit
        from {{ ref('int_events_checked') }}
        group by 1, 2
    ) as counted
    inner join {{ ref('event_tables') }} as event_tables
        on counted.table_order = event_tables.table_order

),

events_written as (

    select
        event_tokens.source_table,
        count(*) as row_count,
        -- of the source: those that repeat one another are one event
        sum(events.row_count) as source_count,
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

-- rows that repeat one another are written as one event, which counts them: a row that
-- got lost on the way to it would be in neither
rows_written as (

    select
        source_table,
        source_count as row_count
    from events_written
    {%- if has_before() %}
    union all
    -- what is taken over was counted when it was encoded
    select
        event_tables.source_table,
        count(*) as row_count
    from {{ ref('int_events_checked') }} as checked
    inner join {{ ref('int_persons_kept') }} as kept
        on checked.person_id = kept.person_id
    inner join {{ ref('event_tables') }} as event_tables
        on checked.table_order = event_tables.table_order
    where checked.reason is null
    group by 1
    {%- endif %}

),

repeated_events as (

    select
        events_written.source_table,
        sum(rows_written.row_count) - max(events_written.row_count) as row_count
    from events_written
    inner join rows_written
        on events_written.source_table = rows_written.source_table
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
    select source_table, reason, row_count from events
    where reason is not null
    union all
    select source_table, null as reason, row_count from events_written
    union all
    select source_table, 'repeated_event' as reason, row_count from repeated_events
    where row_count > 0

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
    select
        source_table,
        'null_concept_read_as_0' as reason,
        sum(has_null_concept) as row_count
    from events
    group by 1
    union all
    select source_table, 'concept_rolled_up' as reason, has_rolled_concept as row_count
    from events
    where reason is null
    union all
    select source_table, 'null_end_read_as_start' as reason, count(*) as row_count
    from visits
    where reason is null and has_null_end
    group by 1
    union all
    select source_table, 'end_outside_language' as reason, has_far_end as row_count
    from events
    where reason is null
    union all
    select
        source_table,
        'number_not_finite' as reason,
        has_no_finite_number as row_count
    from events
    where reason is null
    union all
    select source_table, 'number_unknown_in_training' as reason, unknown_count
    from events_written
    union all
    select source_table, 'visit_not_found' as reason, has_lost_visit as row_count
    from events
    where reason is null
    union all
    select source_table, 'without_visit' as reason, has_no_visit as row_count
    from events
    where reason is null

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
    where row_count > 0

)

select * from final
order by source_table, outcome, reason
