-- One row per person: a history in a few numbers, for telling synthetic from real. Of a
-- large cohort 20,000 persons by chance, the most that a discriminator learns from.
with

ordered as (

    select
        *,
        row_number() over (
            partition by cohort
            order by
                {{ dbt.hash(dbt.concat([
                    "'summary:'", 'cast(person_id as ' ~ dbt.type_string() ~ ')'
                ])) }},
                person_id
        ) as person_order
    from {{ source('cohorts', 'persons') }}

),

persons as (

    select * from ordered
    where person_order <= 20000

),

visits as (

    select
        visits.cohort,
        visits.person_id,
        visits.visit_order,
        visits.visit_start_date,
        {{ visit_type('visits.visit_concept_id') }} as visit_type,
        {{ days_between('visits.visit_start_date', 'visits.visit_end_date') }}
            as stay_days,
        {{ days_between(
            'lag(visits.visit_start_date) over (person)', 'visits.visit_start_date'
        ) }} as gap_days
    from {{ source('cohorts', 'visits') }} as visits
    inner join persons
        on visits.cohort = persons.cohort and visits.person_id = persons.person_id
    window
        person as (
            partition by visits.cohort, visits.person_id order by visits.visit_order
        )

),

visits_counted as (

    select
        cohort,
        person_id,
        min(visit_start_date) as first_date,
        count(*) as visits,
        {%- for type in ['inpatient', 'emergency', 'outpatient', 'other'] %}
            sum(case when visit_type = '{{ type }}' then 1 else 0 end)
                as {{ type }}_visits,
        {%- endfor %}
        sum(stay_days) as stay_days,
        avg(gap_days) as gap_mean,
        stddev_samp(gap_days) as gap_sd,
        min(gap_days) as gap_min,
        median(gap_days) as gap_median,
        max(gap_days) as gap_max
    from visits
    group by 1, 2

),

events_counted as (

    select
        events.cohort,
        events.person_id,
        count(*) as events,
        count(distinct events.concept_id) as concepts
    from {{ source('cohorts', 'events') }} as events
    inner join persons
        on events.cohort = persons.cohort and events.person_id = persons.person_id
    group by 1, 2

),

contents as (

    select distinct
        events.cohort,
        events.person_id,
        events.visit_order,
        events.concept_id
    from {{ source('cohorts', 'events') }} as events
    inner join persons
        on events.cohort = persons.cohort and events.person_id = persons.person_id
    where events.visit_order is not null

),

sizes as (

    select
        cohort,
        person_id,
        visit_order,
        count(*) as concepts
    from contents
    group by 1, 2, 3

),

lags as (

    select 1 as lag
    union all
    select 5 as lag

),

shared as (

    select
        former.cohort,
        former.person_id,
        former.visit_order,
        lags.lag,
        count(*) as concepts
    from contents as former
    cross join lags
    inner join contents as latter
        on
            former.cohort = latter.cohort
            and former.person_id = latter.person_id
            and former.concept_id = latter.concept_id
            and former.visit_order + lags.lag = latter.visit_order
    group by 1, 2, 3, 4

),

-- pairs of visits that both have a concept
similarities as (

    select
        former.cohort,
        former.person_id,
        lags.lag,
        coalesce(shared.concepts, 0) / cast(
            former.concepts + latter.concepts - coalesce(shared.concepts, 0) as double
        ) as jaccard
    from sizes as former
    cross join lags
    inner join sizes as latter
        on
            former.cohort = latter.cohort
            and former.person_id = latter.person_id
            and former.visit_order + lags.lag = latter.visit_order
    left join shared
        on
            former.cohort = shared.cohort
            and former.person_id = shared.person_id
            and former.visit_order = shared.visit_order
            and lags.lag = shared.lag

),

repeats as (

    select
        cohort,
        person_id,
        avg(case when lag = 1 then jaccard end) as lag_1_jaccard,
        avg(case when lag = 5 then jaccard end) as lag_5_jaccard
    from similarities
    group by 1, 2

),

final as (

    select
        persons.cohort,
        persons.person_id,
        cast(persons.person_order as int) as person_order,
        persons.gender_concept_id,
        persons.race_concept_id,
        cast(
            extract(year from visits_counted.first_date) - persons.year_of_birth as int
        ) as age,
        {%- for column in [
            'visits', 'inpatient_visits', 'emergency_visits', 'outpatient_visits',
            'other_visits', 'stay_days',
        ] %}
            cast(coalesce(visits_counted.{{ column }}, 0) as int) as {{ column }},
        {%- endfor %}
        {%- for column in ['gap_mean', 'gap_sd', 'gap_min', 'gap_median', 'gap_max'] %}
            cast(visits_counted.{{ column }} as double) as {{ column }},
        {%- endfor %}
        cast(coalesce(events_counted.events, 0) as int) as events,
        cast(coalesce(events_counted.concepts, 0) as int) as concepts,
        repeats.lag_1_jaccard,
        repeats.lag_5_jaccard
    from persons
    left join visits_counted
        on
            persons.cohort = visits_counted.cohort
            and persons.person_id = visits_counted.person_id
    left join events_counted
        on
            persons.cohort = events_counted.cohort
            and persons.person_id = events_counted.person_id
    left join repeats
        on persons.cohort = repeats.cohort and persons.person_id = repeats.person_id

)

select * from final
