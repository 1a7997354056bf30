-- One row per person: a hash of all that the history tells but its calendar. Equal keys
-- are equal histories: sex, race, and for each visit the days since the one before, its
-- type, its stay and its events.
with

persons as (

    select * from {{ source('cohorts', 'persons') }}

),

events as (

    select
        cohort,
        person_id,
        coalesce(visit_order, 0) as visit_order,
        count(*) as event_count,
        string_agg(
            source_table || ':' || cast(concept_id as {{ dbt.type_string() }}), ','
            order by source_table, concept_id
        ) as words
    from {{ source('cohorts', 'events') }}
    group by 1, 2, 3

),

visits as (

    select
        cohort,
        person_id,
        visit_order,
        visit_concept_id,
        visit_end_date - visit_start_date as days,
        visit_start_date - lag(visit_start_date) over (
            partition by cohort, person_id
            order by visit_order
        ) as gap
    from {{ source('cohorts', 'visits') }}

),

-- events of no visit are told together, as visit 0
steps as (

    select
        coalesce(visits.cohort, events.cohort) as cohort,
        coalesce(visits.person_id, events.person_id) as person_id,
        coalesce(visits.visit_order, events.visit_order) as visit_order,
        coalesce(events.event_count, 0) as event_count,
        concat_ws(
            '|',
            coalesce(cast(visits.gap as {{ dbt.type_string() }}), ''),
            coalesce(cast(visits.visit_concept_id as {{ dbt.type_string() }}), ''),
            coalesce(cast(visits.days as {{ dbt.type_string() }}), ''),
            coalesce(events.words, '')
        ) as step
    from visits
    full outer join events
        on
            visits.cohort = events.cohort
            and visits.person_id = events.person_id
            and visits.visit_order = events.visit_order

),

histories as (

    select
        cohort,
        person_id,
        cast(sum(event_count) as bigint) as event_count,
        string_agg(step, ';' order by visit_order) as history
    from steps
    group by 1, 2

),

final as (

    select
        persons.cohort,
        persons.person_id,
        coalesce(histories.event_count, 0) as event_count,
        {{ dbt.hash(dbt.concat([
            "coalesce(cast(persons.gender_concept_id as " ~ dbt.type_string() ~ "), '')",
            "'/'",
            "coalesce(cast(persons.race_concept_id as " ~ dbt.type_string() ~ "), '')",
            "'/'",
            "coalesce(histories.history, '')",
        ])) }} as history_key
    from persons
    left join histories
        on
            persons.cohort = histories.cohort
            and persons.person_id = histories.person_id

)

select * from final
