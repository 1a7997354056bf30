-- One row per event that is encoded, in the order of the sequence within its visit.
with

-- a visit is known by its id, a loose day by its date
events as (

    select
        *,
        case when visit_occurrence_id is null then event_date end as loose_date
    from {{ ref('int_events_checked') }}
    where reason is null

),

visits as (

    select
        *,
        case when is_loose then visit_start_date end as loose_date
    from {{ ref('int_visits_ordered') }}
    where is_loose or (visit_occurrence_id is not null and repetition = 1)

),

placed as (

    select
        events.person_id,
        visits.visit_order,
        visits.visit_start_date,
        events.source_table,
        events.source_id,
        events.concept_id,
        events.unit_concept_id,
        events.event_date,
        events.hour,
        events.value_as_number,
        cast(null as int) as value_bin,
        events.operator_concept_id,
        events.value_as_concept_id,
        events.quantity,
        events.days_supply,
        events.end_date,
        event_tables.prefix
        || cast(events.concept_id as {{ dbt.type_string() }})
        || coalesce(
            '@' || cast(events.unit_concept_id as {{ dbt.type_string() }}), ''
        ) as token
    from events
    inner join {{ ref('event_tables') }} as event_tables
        on events.source_table = event_tables.source_table
    inner join visits
        on
            events.person_id = visits.person_id
            and events.visit_occurrence_id
            is not distinct from visits.visit_occurrence_id
            and events.loose_date is not distinct from visits.loose_date

),

ordered as (

    select
        *,
        row_number() over (
            partition by person_id, visit_order
            order by
                event_date,
                hour nulls first,
                token,
                value_as_number nulls first,
                operator_concept_id nulls first,
                value_as_concept_id nulls first,
                quantity nulls first,
                days_supply nulls first,
                end_date nulls first,
                source_table,
                source_id
        ) as event_order
    from placed

),

preceded as (

    select
        *,
        coalesce(
            lag(event_date) over (
                partition by person_id, visit_order order by event_order
            ),
            visit_start_date
        ) as cursor_date,
        lag(hour) over (
            partition by person_id, visit_order order by event_order
        ) as previous_hour
    from ordered

),

measured as (

    select
        person_id,
        visit_order,
        cast(event_order as int) as event_order,
        source_table,
        source_id,
        concept_id,
        unit_concept_id,
        event_date,
        {{ days_between('visit_start_date', 'event_date') }} as day_offset,
        {{ days_between('cursor_date', 'event_date') }} as move_days,
        hour,
        -- a change of day or visit resets the hour to unknown
        hour is not null
        and (
            event_order = 1
            or event_date <> cursor_date
            or hour is distinct from previous_hour
        ) as is_new_hour,
        value_as_number,
        value_bin,
        operator_concept_id,
        value_as_concept_id,
        quantity,
        days_supply,
        end_date,
        {{ days_between('event_date', 'end_date') }} as end_days,
        token
    from preceded

)

select * from measured
