-- One row per visit or loose day that is encoded, in the order of the sequence.
-- A loose day holds the events of one date that belong to no visit.
with

checked_visits as (

    select
        visits.person_id,
        visits.visit_occurrence_id,
        visits.repetition,
        visits.visit_concept_id,
        {{ coarse_date('visits.visit_start_date', 'anchors.anchor_date') }}
            as visit_start_date,
        {{ coarse_date('visits.visit_end_date', 'anchors.anchor_date') }}
            as visit_end_date,
        visits.discharged_to_concept_id
    from {{ ref('int_visits_checked') }} as visits
    {%- if var('att_type') != 'day' %}
    inner join {{ ref('int_persons_anchored') }} as anchors
        on visits.person_id = anchors.person_id
    {%- endif %}
    where visits.reason is null and {{ is_new('visits.person_id') }}

),

loose_days as (

    select distinct person_id, event_date
    from {{ ref('int_events_written') }}
    where visit_occurrence_id is null

),

united as (

    select
        person_id,
        false as is_loose,
        visit_occurrence_id,
        repetition,
        visit_concept_id,
        visit_start_date,
        visit_end_date,
        discharged_to_concept_id
    from checked_visits

    union all

    select
        person_id,
        true as is_loose,
        cast(null as bigint) as visit_occurrence_id,
        1 as repetition,
        cast(null as bigint) as visit_concept_id,
        event_date as visit_start_date,
        event_date as visit_end_date,
        cast(null as bigint) as discharged_to_concept_id
    from loose_days

),

-- one order for all, so that rows are sorted once
ordered as (

    select
        *,
        row_number() over in_person as visit_order,
        coalesce(
            lag(visit_end_date) over in_person,
            cast({{ dbt.date_trunc('year', 'visit_start_date') }} as date)
        ) as cursor_date,
        {{ days_between(
            'lag(visit_start_date) over in_person', 'lag(visit_end_date) over in_person'
        ) }} as previous_days,
        lag(discharged_to_concept_id) over in_person
            as previous_discharged_to_concept_id
    from united
    window in_person as (
        partition by person_id
        order by
            visit_start_date,
            is_loose,
            visit_end_date,
            visit_concept_id,
            visit_occurrence_id nulls last,
            repetition
    )

),

measured as (

    select
        person_id,
        cast(visit_order as int) as visit_order,
        is_loose,
        visit_occurrence_id,
        repetition,
        visit_concept_id,
        visit_start_date,
        visit_end_date,
        discharged_to_concept_id,
        {{ days_between('cursor_date', 'visit_start_date') }} as gap_days,
        -- of the visit before, which is closed where this one opens
        previous_days,
        previous_discharged_to_concept_id
    from ordered

){%- if has_before() %},

united_with_kept as (

    select * from measured
    union all by name
    select earlier.*
    from {{ before('int_visits_ordered') }} as earlier
    inner join {{ ref('int_persons_kept') }} as kept
        on earlier.person_id = kept.person_id

)

select * from united_with_kept
{%- else %}

    select * from measured
{%- endif %}
