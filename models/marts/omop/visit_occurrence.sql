-- One row per visit of a sequence; its loose days, which are no visits, have no row.
with

visits as (

    select * from {{ ref('int_visits_decoded') }}
    where not is_loose

),

final as (

    select
        cast(visit_occurrence_id as bigint) as visit_occurrence_id,
        cast(person_id as bigint) as person_id,
        cast(visit_concept_id as bigint) as visit_concept_id,
        cast(visit_start_date as date) as visit_start_date,
        cast(null as timestamp) as visit_start_datetime,
        -- An end before the start stays: the sequence says so.
        cast(visit_end_date as date) as visit_end_date,
        cast(null as timestamp) as visit_end_datetime,
        cast(type_concept_id as bigint) as visit_type_concept_id,
        cast(null as bigint) as provider_id,
        cast(null as bigint) as care_site_id,
        cast(null as string) as visit_source_value,
        cast(null as bigint) as visit_source_concept_id,
        cast(null as bigint) as admitted_from_concept_id,
        cast(null as string) as admitted_from_source_value,
        cast(discharged_to_concept_id as bigint) as discharged_to_concept_id,
        cast(null as string) as discharged_to_source_value,
        cast(preceding_visit_occurrence_id as bigint)
            as preceding_visit_occurrence_id
    from visits

)

select * from final
