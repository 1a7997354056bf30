-- One row per person that is encoded: the year that its sequence starts in, and its age
-- then.
with

persons as (

    select * from {{ ref('int_persons_checked') }}
    where reason is null

),

deaths as (

    select
        deaths.person_id,
        {{ coarse_date('deaths.death_date', 'anchors.anchor_date') }} as death_date
    from {{ ref('int_deaths_checked') }} as deaths
    {%- if var('att_type') != 'day' %}
    inner join {{ ref('int_persons_anchored') }} as anchors
        on deaths.person_id = anchors.person_id
    {%- endif %}
    where deaths.reason is null

),

-- of the first visit or loose day
first_visits as (

    select person_id, visit_start_date
    from {{ ref('int_visits_ordered') }}
    where visit_order = 1

),

started as (

    select
        persons.person_id,
        persons.gender_concept_id,
        persons.race_concept_id,
        persons.ethnicity_concept_id,
        persons.year_of_birth,
        persons.split,
        persons.part,
        deaths.death_date,
        cast(
            coalesce(
                extract(year from first_visits.visit_start_date),
                extract(year from deaths.death_date),
                persons.year_of_birth
            ) as int
        ) as start_year
    from persons
    left join deaths on persons.person_id = deaths.person_id
    left join first_visits on persons.person_id = first_visits.person_id

),

measured as (

    select
        person_id,
        gender_concept_id,
        race_concept_id,
        ethnicity_concept_id,
        year_of_birth,
        death_date,
        start_year,
        start_year - year_of_birth as age_years,
        split,
        part
    from started

)

select * from measured
