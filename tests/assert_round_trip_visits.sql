-- Every visit that the ledger calls encoded comes back in its order with type, start,
-- end and discharge, and none else. Duplicate visits stay.
{{ config(tags=['round_trip']) }}
with

expected as (

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
                discharged_to_concept_id nulls last
        ) as visit_number
    from {{ ref('int_visits_expected') }}

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

{{ differences('expected', 'restored') }}
