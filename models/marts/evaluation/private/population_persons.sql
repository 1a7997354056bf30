-- One row per person: who it is, as subgroups are made of it, and how much is known.
with

persons as (

    select * from {{ source('cohorts', 'persons') }}

),

visits as (

    select
        cohort,
        person_id,
        count(*) as visit_count,
        min(visit_start_date) as first_visit_date,
        max(visit_start_date) as last_visit_date
    from {{ ref('population_visits') }}
    group by 1, 2

),

concepts as (

    select
        cohort,
        person_id,
        count(*) as concept_count,
        min(first_date) as first_event_date,
        max(last_date) as last_event_date
    from {{ ref('population_concepts') }}
    group by 1, 2

),

joined as (

    select
        persons.cohort,
        persons.person_id,
        persons.gender_concept_id,
        persons.race_concept_id,
        persons.ethnicity_concept_id,
        persons.year_of_birth,
        persons.death_date,
        coalesce(visits.visit_count, 0) as visit_count,
        coalesce(concepts.concept_count, 0) as concept_count,
        least(visits.first_visit_date, concepts.first_event_date) as first_date,
        greatest(visits.last_visit_date, concepts.last_event_date) as last_date,
        cast(extract(year from visits.first_visit_date) as int) as first_visit_year
    from persons
    left join visits
        on
            persons.cohort = visits.cohort
            and persons.person_id = visits.person_id
    left join concepts
        on
            persons.cohort = concepts.cohort
            and persons.person_id = concepts.person_id

),

final as (

    select
        cohort,
        person_id,
        gender_concept_id,
        race_concept_id,
        ethnicity_concept_id,
        year_of_birth,
        death_date,
        visit_count,
        concept_count,
        first_date,
        last_date,
        first_visit_year - year_of_birth as age_at_first_visit,
        -- NULL: no visit
        5 * cast(floor((first_visit_year - year_of_birth) / 5.0) as int)
            as age_from,
        10 * cast(floor(first_visit_year / 10.0) as int) as decade,
        case
            when first_visit_year - year_of_birth < 18 then '0-17'
            when first_visit_year - year_of_birth < 40 then '18-39'
            when first_visit_year - year_of_birth < 65 then '40-64'
            when first_visit_year - year_of_birth >= 65 then '65+'
        end as age_group
    from joined

)

select * from final
