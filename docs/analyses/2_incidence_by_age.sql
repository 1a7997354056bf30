-- First occurrences of the commonest condition per 1,000 person-years, by age. Years count
-- from the start of observation to the first occurrence or the end of observation.
with

commonest as (

    select condition_concept_id
    from condition_occurrence
    where condition_concept_id <> 0
    group by condition_concept_id
    order by count(distinct person_id) desc, condition_concept_id
    limit 1

),

observed as (

    select
        observation_period.person_id,
        person.year_of_birth,
        min(observation_period.observation_period_start_date) as start_date,
        max(observation_period.observation_period_end_date) as end_date
    from observation_period
    inner join person on observation_period.person_id = person.person_id
    group by observation_period.person_id, person.year_of_birth

),

first_occurrences as (

    select
        condition_occurrence.person_id,
        min(condition_occurrence.condition_start_date) as first_date
    from condition_occurrence
    inner join commonest
        on condition_occurrence.condition_concept_id = commonest.condition_concept_id
    group by condition_occurrence.person_id

),

at_risk as (

    select
        observed.year_of_birth,
        observed.start_date,
        case
            when first_occurrences.first_date between observed.start_date and observed.end_date
                then first_occurrences.first_date
            else observed.end_date
        end as end_date,
        case
            when first_occurrences.first_date between observed.start_date and observed.end_date
                then 1
            else 0
        end as has_condition
    from observed
    left join first_occurrences on observed.person_id = first_occurrences.person_id
    where
        first_occurrences.first_date is null
        or first_occurrences.first_date >= observed.start_date

),

ages as (

    select 0 as from_age, 17 as to_age
    union all
    select 18 as from_age, 39 as to_age
    union all
    select 40 as from_age, 64 as to_age
    union all
    select 65 as from_age, 150 as to_age

),

-- the years that each person spends in each group of ages
spent as (

    select
        ages.from_age,
        ages.to_age,
        greatest(
            0,
            least(
                extract(year from at_risk.end_date) - at_risk.year_of_birth, ages.to_age
            )
            - greatest(
                extract(year from at_risk.start_date) - at_risk.year_of_birth,
                ages.from_age
            ) + 1
        ) as years,
        case
            when
                at_risk.has_condition = 1
                and extract(year from at_risk.end_date) - at_risk.year_of_birth
                between ages.from_age and ages.to_age
                then 1
            else 0
        end as cases
    from at_risk
    cross join ages

)

select
    from_age,
    to_age,
    sum(years) as person_years,
    sum(cases) as cases,
    round(1000.0 * sum(cases) / nullif(sum(years), 0), 2) as per_1000_person_years
from spent
group by from_age, to_age
order by from_age
