-- One row per visit as CEHR-GPT sees it: with its length, its age and its tokens. A
-- death is one more visit, never before the end of another.
{{ config(materialized='ephemeral') }}
with

persons as (

    select * from {{ ref('int_persons_started') }}

),

birthdays as (

    -- 1231 is 31 December; 1 January where the source does not know better
    select
        person_id,
        min(coalesce(month_of_birth, 1) * 100 + coalesce(day_of_birth, 1)) as birthday
    from {{ ref('stg_omop__person') }}
    group by 1

),

typed as (

    select
        person_id,
        visit_order,
        coalesce(visit_concept_id, 0) as visit_concept_id,
        coalesce(visit_concept_id, 0) in (9201, 262, 8971, 8920) as is_stay,
        visit_start_date,
        visit_end_date,
        coalesce(discharged_to_concept_id, 0) as discharged_to_concept_id
    from {{ ref('visits') }}

),

visits as (

    select
        person_id,
        visit_order,
        visit_concept_id,
        is_stay,
        visit_start_date as start_date,
        -- only a stay has a length there, and it cannot end before it starts
        case
            when is_stay then greatest(visit_start_date, visit_end_date)
            else visit_start_date
        end as end_date,
        case
            when visit_concept_id = 0 then 'Visit/0'
            else cast(visit_concept_id as {{ dbt.type_string() }})
        end as type_token,
        case
            when discharged_to_concept_id = 0 then 'Discharge/0'
            else cast(discharged_to_concept_id as {{ dbt.type_string() }})
        end as discharge_token
    from typed

),

deaths as (

    select
        visits.person_id,
        max(visits.visit_order) + 1 as visit_order,
        greatest(max(persons.death_date), max(visits.end_date)) as death_date
    from visits
    inner join persons on visits.person_id = persons.person_id
    where persons.death_date is not null
    group by 1

),

united as (

    select * from visits

    union all

    select
        person_id,
        visit_order,
        cast(0 as bigint) as visit_concept_id,
        false as is_stay,
        death_date as start_date,
        death_date as end_date,
        '[DEATH]' as type_token,
        cast(null as {{ dbt.type_string() }}) as discharge_token
    from deaths

),

final as (

    select
        united.*,
        persons.gender_concept_id,
        persons.race_concept_id,
        persons.split,
        persons.part,
        -- the age at the next birthday, except on a birthday itself
        extract(year from united.start_date) - persons.year_of_birth
        + case
            when
                extract(month from united.start_date) * 100
                + extract(day from united.start_date)
                > birthdays.birthday
                then 1
            else 0
        end as age
    from united
    inner join persons on united.person_id = persons.person_id
    inner join birthdays on united.person_id = birthdays.person_id

)

select * from final
