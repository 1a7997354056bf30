-- One row per prediction task and person: a day to look ahead from, what was known of the
-- person on it beside the codes, and what came after it.
{%- set tasks = [
    {'task': 'readmit30', 'visit': 'inpatient', 'at_end': true, 'horizon': 30,
     'survives': true},
    {'task': 'admit180', 'visit': 'outpatient', 'horizon': 180},
    {'task': 'mortality365', 'least_age': 50, 'horizon': 365},
    {'task': 'next_visit_type'},
    {'task': 'los_over_3', 'visit': 'inpatient'},
] %}
with

persons as (

    select * from {{ source('cohorts', 'persons') }}

),

typed_visits as (

    select
        cohort,
        person_id,
        visit_order,
        visit_start_date,
        coalesce(visit_end_date, visit_start_date) as visit_end_date,
        {{ visit_type('visit_concept_id') }} as visit_type
    from {{ source('cohorts', 'visits') }}

),

event_days as (

    select
        cohort,
        person_id,
        min(event_date) as first_date,
        max(event_date) as last_date
    from {{ source('cohorts', 'events') }}
    group by 1, 2

),

visit_days as (

    select
        cohort,
        person_id,
        min(visit_start_date) as first_date,
        max(greatest(visit_start_date, visit_end_date)) as last_date
    from typed_visits
    group by 1, 2

),

-- a person is followed from the first record to the last one, or to death
followed_persons as (

    select
        cohort,
        person_id,
        persons.gender_concept_id,
        persons.race_concept_id,
        persons.year_of_birth,
        persons.death_date,
        least(
            visit_days.first_date, coalesce(event_days.first_date, visit_days.first_date)
        ) as first_date,
        coalesce(
            persons.death_date,
            greatest(
                visit_days.last_date, coalesce(event_days.last_date, visit_days.last_date)
            )
        ) as last_date
    from persons
    inner join visit_days using (cohort, person_id)
    left join event_days using (cohort, person_id)

),

numbered_visits as (

    select
        *,
        min(visit_start_date) over (person) as first_start_date,
        lead(visit_type) over (person) as next_visit_type,
        {%- for type in ['inpatient', 'emergency', 'outpatient', 'other'] %}
        sum(case when visit_type = '{{ type }}' then 1 else 0 end) over (person)
            as {{ type }}_visits,
        {%- endfor %}
        {{ dbt.hash(dbt.concat([
            "'index:'", 'cast(person_id as ' ~ dbt.type_string() ~ ')',
            "':'", 'cast(visit_order as ' ~ dbt.type_string() ~ ')',
        ])) }} as visit_hash
    from typed_visits
    window person as (partition by cohort, person_id order by visit_order)

),

-- The first of a condition counts wherever it was noted.
onsets as (

    select
        events.cohort,
        events.person_id,
        concat('incident_', concept_id) as task,
        min(events.event_date) as outcome_date
    from {{ source('cohorts', 'events') }} as events
    inner join {{ ref('incident_conditions') }} using (concept_id)
    where events.source_table = 'condition_occurrence'
    group by 1, 2, 3

),

-- what each task looks ahead from, and how far
tasks as (

    {%- for task in tasks %}
    select
        '{{ task.task }}' as task,
        '{{ task.visit | default('any') }}' as visit_type,
        {{ task.at_end | default(false) }} as at_end,
        {{ task.least_age | default('-1000') }} as least_age,
        {{ task.horizon | default(0) }} as horizon,
        {{ task.survives | default(false) }} as survives
    union all
    {%- endfor %}
    select
        concat('incident_', concept_id) as task,
        'any' as visit_type,
        false as at_end,
        18 as least_age,
        1095 as horizon,
        false as survives
    from {{ ref('incident_conditions') }}

),

dated as (

    select
        *,
        case when at_end then visit_end_date else visit_start_date end as index_date
    from numbered_visits
    inner join tasks
        on tasks.visit_type in ('any', numbered_visits.visit_type)

),

eligible as (

    select
        dated.*,
        followed.gender_concept_id,
        followed.race_concept_id,
        followed.death_date,
        extract(year from dated.index_date) - followed.year_of_birth as age
    from dated
    inner join followed_persons as followed using (cohort, person_id)
    left join onsets using (cohort, person_id, task)
    where
        {{ days_between('followed.first_date', 'dated.index_date') }} >= 365
        -- followed to the horizon, or to death
        and (
            followed.death_date is not null
            or {{ days_between('dated.index_date', 'followed.last_date') }}
            >= dated.horizon
        )
        -- alive on the day; at the horizon too, where death would hide the outcome
        and (
            followed.death_date is null
            or {{ days_between('dated.index_date', 'followed.death_date') }}
            > case when dated.survives then dated.horizon else 0 end
        )
        and (
            dated.least_age <= -1000
            or extract(year from dated.index_date) - followed.year_of_birth
            >= dated.least_age
        )
        -- at risk: a condition that is there cannot begin
        and (onsets.outcome_date is null or onsets.outcome_date > dated.index_date)
        and (dated.task <> 'next_visit_type' or dated.next_visit_type is not null)

),

drawn as (

    select
        *,
        row_number() over (
            partition by task, cohort, person_id order by visit_hash, visit_order
        ) as draw
    from eligible

),

indices as (

    select * from drawn
    where draw = 1

),

outcomes as (

    select * from onsets
    union all
    select cohort, person_id, 'mortality365' as task, death_date as outcome_date
    from persons
    union all
    select cohort, person_id, 'readmit30' as task, visit_start_date as outcome_date
    from typed_visits
    where visit_type = 'inpatient'
    union all
    select cohort, person_id, 'admit180' as task, visit_start_date as outcome_date
    from typed_visits
    where visit_type in ('inpatient', 'emergency')

),

ahead as (

    select distinct
        indices.task,
        indices.cohort,
        indices.person_id
    from indices
    inner join outcomes using (task, cohort, person_id)
    where
        outcomes.outcome_date > indices.index_date
        and {{ days_between('indices.index_date', 'outcomes.outcome_date') }}
        <= indices.horizon

),

final as (

    select
        indices.task,
        indices.cohort,
        indices.person_id,
        indices.index_date,
        cast(
            case
                when indices.task = 'next_visit_type'
                    then case indices.next_visit_type
                        when 'inpatient' then 0
                        when 'emergency' then 1
                        when 'outpatient' then 2
                        else 3
                    end
                when indices.task = 'los_over_3'
                    then case
                        when
                            {{ days_between(
                                'indices.visit_start_date', 'indices.visit_end_date'
                            ) }} > 3 then 1
                        else 0
                    end
                when ahead.person_id is not null then 1
                else 0
            end as int
        ) as label,
        cast(indices.age as int) as age,
        indices.gender_concept_id,
        indices.race_concept_id,
        cast(indices.inpatient_visits as int) as inpatient_visits,
        cast(indices.emergency_visits as int) as emergency_visits,
        cast(indices.outpatient_visits as int) as outpatient_visits,
        cast(indices.other_visits as int) as other_visits,
        -- 0 of a first visit
        cast(
            coalesce(
                {{ days_between(
                    'indices.first_start_date', 'indices.visit_start_date'
                ) }} / nullif(indices.visit_order - 1, 0),
                0
            ) as double
        ) as mean_gap
    from indices
    left join ahead using (task, cohort, person_id)

)

select * from final
