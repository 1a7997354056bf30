-- One row per event that is encoded, in the order of the sequence within its visit.
-- Rows of the source that repeat one another in all that is written of them are one
-- event, known by the smallest id.
{%- set in_visit %}
    partition by person_id, visit_order
    order by {{ written_of_event() | join(' nulls first, ') }} nulls first
{%- endset %}
with

-- a visit is known by its id, a loose day by its date
events as (

    select
        *,
        case when visit_occurrence_id is null then event_date end as loose_date
    from {{ ref('int_events_written') }}

),

visits as (

    select
        *,
        case when is_loose then visit_start_date end as loose_date
    from {{ ref('int_visits_ordered') }}
    where is_loose or (visit_occurrence_id is not null and repetition = 1)

),

-- where the bins of a token's numbers start; the first takes whatever is smaller
bin_starts as (

    select
        token_order,
        field,
        {{ collect(
            "coalesce(low, cast('-infinity' as double))", order_by='bin'
        ) }} as lows
    from {{ ref('int_value_bins') }}
    group by 1, 2

),

placed as (

    select
        events.person_id,
        visits.visit_order,
        visits.visit_start_date,
        events.token_order,
        events.source_id,
        events.event_date,
        events.hour,
        events.value_as_number,
        -- NULL where training has no number of this token
        cast(
            {{ array_rank('numbers.lows', 'events.value_as_number') }} - 1 as int
        ) as value_bin,
        events.operator_concept_id,
        events.value_as_concept_id,
        events.quantity,
        cast(
            {{ array_rank('quantities.lows', 'events.quantity') }} - 1 as int
        ) as quantity_bin,
        events.days_supply,
        events.end_date
    from events
    inner join visits
        on
            events.person_id = visits.person_id
            and events.visit_occurrence_id
            is not distinct from visits.visit_occurrence_id
            and events.loose_date is not distinct from visits.loose_date
    left join bin_starts as numbers
        on
            events.token_order = numbers.token_order
            and numbers.field = 'number'
            and events.value_as_number is not null
    left join bin_starts as quantities
        on
            events.token_order = quantities.token_order
            and quantities.field = 'quantity'
            and events.quantity is not null

),

ordered as (

    select
        *,
        dense_rank() over ({{ in_visit }}) as event_order,
        row_number() over ({{ in_visit }}) = rank() over ({{ in_visit }}) as is_first,
        count(*) over (
            {{ in_visit }} range between current row and current row
        ) as row_count,
        min(source_id) over (
            {{ in_visit }} range between current row and current row
        ) as first_source_id,
        coalesce(
            lag(event_date) over ({{ in_visit }}), visit_start_date
        ) as cursor_date,
        lag(hour) over ({{ in_visit }}) as previous_hour
    from placed

),

measured as (

    select
        person_id,
        visit_order,
        cast(event_order as int) as event_order,
        token_order,
        first_source_id as source_id,
        row_count,
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
        quantity_bin,
        days_supply,
        end_date,
        {{ days_between('event_date', 'end_date') }} as end_days
    from ordered
    where is_first

){%- if has_before() %},

united_with_kept as (

    select * from measured
    union all by name
    select renumbered.*
    from ({{ before_renumbered('int_events_ordered') }}) as renumbered
    inner join {{ ref('int_persons_kept') }} as kept
        on renumbered.person_id = kept.person_id

)

select * from united_with_kept
{%- else %}

    select * from measured
{%- endif %}
