-- One row per person that is encoded: the year that its sequence starts in, its age
-- then, and the days from its last visit (or 1 January of that year) to its death.
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

visits as (

    select * from {{ ref('int_visits_ordered') }}

),

visit_spans as (

    select
        person_id,
        max(visit_order) as visit_count,
        min(visit_start_date) as first_start_date
    from visits
    group by 1

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
        coalesce(visit_spans.visit_count, 0) as visit_count,
        cast(
            coalesce(
                extract(year from visit_spans.first_start_date),
                extract(year from deaths.death_date),
                persons.year_of_birth
            ) as int
        ) as start_year,
        coalesce(
            last_visits.visit_end_date,
            cast({{ dbt.date_trunc('year', 'deaths.death_date') }} as date)
        ) as cursor_date
    from persons
    left join deaths on persons.person_id = deaths.person_id
    left join visit_spans on persons.person_id = visit_spans.person_id
    left join visits as last_visits
        on
            visit_spans.person_id = last_visits.person_id
            and visit_spans.visit_count = last_visits.visit_order

),

measured as (

    select
        person_id,
        gender_concept_id,
        race_concept_id,
        ethnicity_concept_id,
        year_of_birth,
        death_date,
        visit_count,
        start_year,
        start_year - year_of_birth as age_years,
        {{ days_between('cursor_date', 'death_date') }} as death_gap_days,
        split,
        part
    from started

)

select * from measured
