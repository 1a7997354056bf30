-- One row per visit or loose day that is encoded, in the order of the sequence.
-- A loose day holds the events of one date that belong to no visit.
{{ config(materialized='view') }}
-- depends_on: {{ ref('int_histories_ordered') }}
with

visits as (

    select
        person_id,
        visit_order,
        is_loose,
        visit_occurrence_id,
        visit_concept_id,
        visit_start_date,
        visit_end_date,
        discharged_to_concept_id,
        gap_days
    from {{ ordered('visits') }}

){%- if has_before() %},

united_with_kept as (

    select * from visits
    union all by name
    select earlier.*
    from {{ before_file('visits') }} as earlier
    inner join {{ ref('int_persons_kept') }} as kept
        on earlier.person_id = kept.person_id

)

select * from united_with_kept
{%- else %}

    select * from visits
{%- endif %}
