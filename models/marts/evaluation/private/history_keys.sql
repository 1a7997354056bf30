-- One row per person: a hash of all that the history tells but its calendar. Equal keys
-- are equal histories: sex, race, and for each visit the days since the one before, its
-- type and the set of its concepts.
with

persons as (

    select * from {{ source('cohorts', 'persons') }}

),

-- a sum of hashes needs no order: far faster than a text of the whole history
events as (

    select
        cohort,
        person_id,
        count(*) as event_count,
        sum(distinct hash(visit_order, source_table, concept_id)) as events_key
    from {{ source('cohorts', 'events') }}
    group by 1, 2

),

visits as (

    select
        cohort,
        person_id,
        visit_order,
        visit_concept_id,
        visit_start_date - lag(visit_start_date) over (
            partition by cohort, person_id
            order by visit_order
        ) as gap_days
    from {{ source('cohorts', 'visits') }}

),

visits_summed as (

    select
        cohort,
        person_id,
        sum(hash(visit_order, visit_concept_id, gap_days)) as visits_key
    from visits
    group by 1, 2

),

final as (

    select
        persons.cohort,
        persons.person_id,
        coalesce(events.event_count, 0) as event_count,
        cast(
            hash(
                persons.gender_concept_id,
                persons.race_concept_id,
                visits_summed.visits_key,
                events.events_key
            ) as {{ dbt.type_string() }}
        ) as history_key
    from persons
    left join events
        on
            persons.cohort = events.cohort
            and persons.person_id = events.person_id
    left join visits_summed
        on
            persons.cohort = visits_summed.cohort
            and persons.person_id = visits_summed.person_id

)

select * from final
