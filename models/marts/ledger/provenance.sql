-- One row per row that a sequence told: the sequence, and the position of its token.
with

final as (

    select 'person' as cdm_table, person_id as row_id, person_id, position
    from {{ ref('int_persons_decoded') }}
    union all
    select
        'visit_occurrence' as cdm_table,
        visit_occurrence_id as row_id,
        person_id,
        position
    from {{ ref('int_visits_decoded') }}
    where not is_loose
    union all
    select source_table as cdm_table, event_id as row_id, person_id, position
    from {{ ref('int_events_decoded') }}
    union all
    select 'death' as cdm_table, person_id as row_id, person_id, position
    from {{ ref('int_deaths_decoded') }}

)

select * from final
