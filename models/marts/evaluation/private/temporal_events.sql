-- One row per event, its person, visit and concept as numbers: what other marts count.
with

persons as (

    select * from {{ ref('temporal_persons') }}

),

concepts as (

    select * from {{ ref('temporal_concepts') }}

),

events as (

    select * from {{ source('cohorts', 'events') }}

),

final as (

    select
        persons.cohort,
        persons.person_number,
        persons.visits_before + events.visit_order as visit_number,
        concepts.concept_number,
        events.event_date
    from events
    inner join persons
        on
            events.cohort = persons.cohort
            and events.person_id = persons.person_id
    inner join concepts
        on
            events.source_table = concepts.source_table
            and events.concept_id = concepts.concept_id

)

select * from final
