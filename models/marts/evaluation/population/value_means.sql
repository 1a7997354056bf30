-- One row per cohort, concept, unit, gender and twenty years of age: its numbers' mean.
with

events as (

    select * from {{ source('cohorts', 'events') }}
    where value_as_number is not null

),

persons as (

    select * from {{ source('cohorts', 'persons') }}

),

joined as (

    select
        events.cohort,
        events.source_table,
        events.concept_id,
        events.unit_concept_id,
        persons.gender_concept_id,
        20 * cast(
            floor(
                (extract(year from events.event_date) - persons.year_of_birth) / 20.0
            ) as int
        ) as age_from,
        events.value_as_number
    from events
    inner join persons
        on
            events.cohort = persons.cohort
            and events.person_id = persons.person_id

),

final as (

    select
        cohort,
        source_table,
        concept_id,
        unit_concept_id,
        gender_concept_id,
        age_from,
        count(*) as value_count,
        avg(value_as_number) as value_mean
    from joined
    group by 1, 2, 3, 4, 5, 6

)

select * from final
