-- One row per step of a history, in the order of the sequence: what opens it (0), an
-- event with its visit, or a visit without events (1), and what closes it, with the
-- death if there is one (2). Rows of the source that repeat one another in all that is
-- written of them are one event, known by the smallest id. The rows lie in this order:
-- what comes after needs no other sort.
{{ config(post_hook='{{ order_by_python() }}') }}
-- depends_on: {{ ref('int_persons_anchored') }}
-- depends_on: {{ ref('int_event_tokens') }}
{%- set year_start
    = 'cast(' ~ dbt.date_trunc('year', 'visit_start_date') ~ ' as date)' %}
with

persons as (

    select
        persons.person_id,
        persons.part,
        {{ coarse_date('deaths.death_date', 'anchors.anchor_date') }} as death_date
    from {{ ref('int_persons_checked') }} as persons
    left join {{ ref('int_deaths_checked') }} as deaths
        on persons.person_id = deaths.person_id and deaths.reason is null
    {%- if var('att_type') != 'day' %}
    left join {{ ref('int_persons_anchored') }} as anchors
        on persons.person_id = anchors.person_id
    {%- endif %}
    where
        persons.reason is null
        and {{ is_new('persons.person_id') }}

),

visits as (

    {{ visits_to_order() }}

),

events as (

    {{ events_to_order() }}

),

-- an event without a visit is in the loose day of its date
steps as (

    select
        coalesce(events.part, visits.part) as part,
        coalesce(events.person_id, visits.person_id) as person_id,
        1 as step,
        visits.person_id is null as is_loose,
        coalesce(visits.visit_start_date, events.event_date) as visit_start_date,
        coalesce(visits.visit_end_date, events.event_date) as visit_end_date,
        visits.visit_concept_id,
        visits.visit_occurrence_id,
        visits.repetition,
        visits.discharged_to_concept_id,
        events.event_date,
        events.hour,
        events.token_order,
        events.value_as_number,
        events.value_bin,
        events.operator_concept_id,
        events.value_as_concept_id,
        events.quantity,
        events.quantity_bin,
        events.days_supply,
        events.end_date,
        events.source_id
    from events
    full outer join visits
        on
            events.person_id = visits.person_id
            -- of the visits of an id the first has its events
            and events.visit_occurrence_id
            = case when visits.repetition = 1 then visits.visit_occurrence_id end

    {%- for step, start_date in [(0, 'cast(null as date)'), (2, 'death_date')] %}

        union all

        select
            part,
            person_id,
            {{ step }} as step,
            false as is_loose,
            {{ start_date }} as visit_start_date,
            null as visit_end_date,
            null as visit_concept_id,
            null as visit_occurrence_id,
            null as repetition,
            null as discharged_to_concept_id,
            null as event_date,
            null as hour,
            null as token_order,
            null as value_as_number,
            null as value_bin,
            null as operator_concept_id,
            null as value_as_concept_id,
            null as quantity,
            null as quantity_bin,
            null as days_supply,
            null as end_date,
            null as source_id
        from persons
    {%- endfor %}

),

sorted as (

    select * from steps
    order by {{ order_of_steps() }}

),

followed as (

    select
        *,
        {{ previous_of([
            'step', 'is_loose', 'visit_start_date', 'visit_end_date',
            'visit_occurrence_id', 'repetition', 'discharged_to_concept_id',
        ] + written_of_event()) }}
    from sorted

),

opened as (

    select
        *,
        -- the step before is of the same person: each has one that opens the history
        step = 1
        and (
            previous_step = 0
            or is_loose <> previous_is_loose
            or visit_start_date <> previous_visit_start_date
            or visit_occurrence_id is distinct from previous_visit_occurrence_id
            or repetition is distinct from previous_repetition
        ) as opens_visit,
        {{ running('count(*)', 'row_number()') }} as rows_so_far
    from followed

),

distinct_steps as (

    select * from opened
    where opens_visit or step <> 1 or {{ differs_from_previous(written_of_event()) }}

),

counted as (

    select
        *,
        {{ running('count(*)', 'row_number()') }} as step_order,
        -- of the source: those that repeat it follow the step
        {{ next_of('rows_so_far') }} - rows_so_far as row_count,
        {{ running('count(case when opens_visit then 1 end)') }} as visits_so_far -- noqa
    from distinct_steps

),

started as (

    select
        *,
        -- of the person, and of the visit
        {{ running('max(case when step = 0 then visits_so_far end)') }} as visits_before, -- noqa
        {{ running('max(case when opens_visit then step_order end)') }} as first_step -- noqa
    from counted

),

final as (

    select
        part,
        person_id,
        step_order,
        cast(step as tinyint) as step,
        case when step = 1 then cast(visits_so_far - visits_before as int) end
            as visit_order,
        -- the first event opens its visit: a visit without events has one step
        case
            when event_date is not null
                then cast(step_order - first_step + 1 as int)
        end as event_order,
        opens_visit,
        is_loose,
        visit_occurrence_id,
        visit_concept_id,
        visit_start_date,
        visit_end_date,
        discharged_to_concept_id,
        -- what closes the visit before: a move from its last event to its end
        case
            when previous_step = 1 and (opens_visit or step = 2)
                then {{ days_between(
                    'coalesce(previous_event_date, previous_visit_start_date)',
                    'previous_visit_end_date'
                ) }}
        end as closing_days,
        case
            when previous_step = 1 and (opens_visit or step = 2)
                then previous_discharged_to_concept_id
        end as closing_discharged_to_concept_id,
        -- the first gap is from 1 January
        case
            when opens_visit or step = 2
                then {{ days_between(
                    'case when previous_step = 1 then previous_visit_end_date else '
                    ~ year_start ~ ' end',
                    'visit_start_date'
                ) }}
        end as gap_days,
        token_order,
        source_id,
        case when event_date is not null then cast(row_count as int) end as row_count,
        event_date,
        {{ days_between(
            'case when opens_visit then visit_start_date else previous_event_date end',
            'event_date'
        ) }} as move_days,
        hour,
        -- a change of day or visit resets the hour to unknown
        hour is not null
        and (
            opens_visit
            or event_date <> previous_event_date
            or hour is distinct from previous_hour
        ) as is_new_hour,
        value_as_number,
        value_bin,
        operator_concept_id,
        value_as_concept_id,
        quantity,
        quantity_bin,
        days_supply,
        end_date
    from started

)

select * from final
