-- One row per visit or loose day that is encoded, in order.
-- depends_on: {{ ref('int_persons_started') }}
with

visits as (

    select * from {{ ref('int_visits_ordered') }}

),

final as (

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
    from visits

)

select * from final
