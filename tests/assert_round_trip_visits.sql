-- Every visit that the ledger calls encoded comes back in its order with type, start,
-- end and discharge, and none else. Duplicate visits stay.
{{ config(tags=['round_trip']) }}
with

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
    from {{ ref('int_visits_checked') }}
    where reason is null

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
