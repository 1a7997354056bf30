-- Every visit that the ledger calls encoded comes back in its order with type, start,
-- end and discharge, and none else. Duplicate visits stay.
{{ config(tags=['round_trip']) }}
with

dated as (

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
    left join {{ ref('int_persons_anchored') }} as anchors
        on visits.person_id = anchors.person_id
    where visits.reason is null

),

encoded as (

    select
        person_id,
        visit_concept_id,
        visit_start_date,
        visit_end_date,
        discharged_to_concept_id,
        row_number() over (
            partition by person_id
            order by
                visit_start_date,
                visit_end_date,
                visit_concept_id,
                visit_occurrence_id,
                repetition
        ) as visit_number
    from dated

),

restored as (

    select
        person_id,
        visit_concept_id,
        visit_start_date,
        visit_end_date,
        discharged_to_concept_id,
        row_number() over (
            partition by person_id
            order by visit_occurrence_id
        ) as visit_number
    from {{ ref('visit_occurrence') }}

)

{{ differences('encoded', 'restored') }}
