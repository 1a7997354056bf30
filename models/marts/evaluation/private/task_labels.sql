-- One row per prediction task and person: a day to look ahead from, what was known of
-- the person on it beside the codes, and what came after it.
{%- set index_date %}
        case when tasks.at_end then visit_end_date else visit_start_date end
            as index_date
{%- endset %}
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

records as (

    select
        cohort,
        person_id,
        event_date as first_date,
        event_date as last_date
    from {{ source('cohorts', 'events') }}
    union all
    select
        cohort,
        person_id,
        visit_start_date as first_date,
        greatest(visit_start_date, visit_end_date) as last_date
    from typed_visits

),

spans as (

    select
        cohort,
        person_id,
        min(first_date) as first_date,
        max(last_date) as last_date
    from records
    group by 1, 2

),

onsets as (

    select
        events.cohort,
        events.person_id,
        conditions.condition_order,
        min(events.event_date) as onset_date
    from {{ source('cohorts', 'events') }} as events
    inner join {{ source('cohorts', 'concept_families') }} as families
        on
            events.source_table = families.source_table
            and events.concept_id = families.concept_id
    inner join {{ ref('incident_conditions') }} as conditions
        on families.family_concept_id = conditions.concept_id
    where events.source_table = 'condition_occurrence'
    group by 1, 2, 3

),

onsets_by_person as (

    select
        {%- for number in range(1, 5) %}
            max(case when condition_order = {{ number }} then onset_date end)
                as onset_{{ number }},
        {%- endfor %}
        cohort,
        person_id
    from onsets
    group by cohort, person_id

),

-- a person is followed from the first record to the last one, or to death
followed_persons as (

    select
        persons.cohort,
        persons.person_id,
        persons.gender_concept_id,
        persons.race_concept_id,
        persons.year_of_birth,
        persons.death_date,
        {%- for number in range(1, 5) %}
            onsets.onset_{{ number }},
        {%- endfor %}
        spans.first_date,
        coalesce(persons.death_date, spans.last_date) as last_date
    from persons
    inner join spans
        on persons.cohort = spans.cohort and persons.person_id = spans.person_id
    left join onsets_by_person as onsets
        on persons.cohort = onsets.cohort and persons.person_id = onsets.person_id

),

visits as (

    select
        *,
        min(visit_start_date) over (person) as first_start_date,
        lead(visit_type) over (person) as next_visit_type,
        {%- for type in ['inpatient', 'emergency', 'outpatient', 'other'] %}
            sum(case when visit_type = '{{ type }}' then 1 else 0 end) over (person)
                as {{ type }}_visits,
        {%- endfor %}
        row_number() over (
            partition by cohort, person_id
            order by
                {{ dbt.hash(dbt.concat([
                    "'index:'", 'cast(person_id as ' ~ dbt.type_string() ~ ')',
                    "':'", 'cast(visit_order as ' ~ dbt.type_string() ~ ')',
                ])) }},
                visit_order
        ) as draw_order
    from typed_visits
    window person as (partition by cohort, person_id order by visit_order)

),

followed_visits as (

    select
        visits.*,
        followed_persons.gender_concept_id,
        followed_persons.race_concept_id,
        followed_persons.year_of_birth,
        followed_persons.death_date,
        {%- for number in range(1, 5) %}
            followed_persons.onset_{{ number }},
        {%- endfor %}
        followed_persons.first_date,
        followed_persons.last_date
    from visits
    inner join followed_persons
        on
            visits.cohort = followed_persons.cohort
            and visits.person_id = followed_persons.person_id
    where
        {{ days_between(
            'followed_persons.first_date', 'visits.visit_end_date'
        ) }} >= 365

),

tasks as (

    select * from {{ ref('prediction_tasks') }}

),

dated as (

    select
        followed_visits.*,
        tasks.task,
        tasks.least_age,
        tasks.horizon,
        tasks.survives,
        {{ index_date | trim }},
        case tasks.condition_order
            {%- for number in range(1, 5) %}
                when {{ number }} then onset_{{ number }}
            {%- endfor %}
        end as onset_date
    from followed_visits
    inner join tasks
        on tasks.visit_type in ('any', followed_visits.visit_type)

),

drawn as (

    select
        task,
        cohort,
        person_id,
        min(draw_order) as draw_order
    from dated
    where
        {{ days_between('first_date', 'index_date') }} >= 365
        and (
            least_age is null
            or extract(year from index_date) - year_of_birth >= least_age
        )
        -- followed to the horizon, or to death
        and (
            death_date is not null
            or {{ days_between('index_date', 'last_date') }} >= horizon
        )
        -- alive on the day; at the horizon too, where death would hide the outcome
        and (
            death_date is null
            or {{ days_between('index_date', 'death_date') }}
            > case when survives then horizon else 0 end
        )
        -- at risk: a condition that is there cannot begin
        and (onset_date is null or onset_date > index_date)
        and (task <> 'next_visit_type' or next_visit_type is not null)
    group by 1, 2, 3

),

indices as (

    select
        followed_visits.*,
        tasks.task,
        tasks.horizon,
        {{ index_date | trim }}
    from drawn
    inner join followed_visits
        on
            drawn.cohort = followed_visits.cohort
            and drawn.person_id = followed_visits.person_id
            and drawn.draw_order = followed_visits.draw_order
    inner join tasks on drawn.task = tasks.task

),

outcomes as (

    select
        events.cohort,
        events.person_id,
        task_outcomes.task,
        events.event_date as outcome_date
    from {{ source('cohorts', 'events') }} as events
    inner join {{ ref('task_outcomes') }} as task_outcomes
        on
            events.source_table = task_outcomes.source_table
            and events.concept_id = task_outcomes.concept_id
    union all
    select
        visits.cohort,
        visits.person_id,
        task_outcomes.task,
        visits.visit_start_date as outcome_date
    from {{ source('cohorts', 'visits') }} as visits
    inner join {{ ref('task_outcomes') }} as task_outcomes
        on
            task_outcomes.source_table = 'visit_occurrence'
            and visits.visit_concept_id = task_outcomes.concept_id
    union all
    select
        persons.cohort,
        persons.person_id,
        task_outcomes.task,
        persons.death_date as outcome_date
    from persons
    inner join {{ ref('task_outcomes') }} as task_outcomes
        on task_outcomes.source_table = 'death'

),

ahead as (

    select distinct
        indices.task,
        indices.cohort,
        indices.person_id
    from indices
    inner join outcomes
        on
            indices.task = outcomes.task
            and indices.cohort = outcomes.cohort
            and indices.person_id = outcomes.person_id
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
        cast(
            extract(year from indices.index_date) - indices.year_of_birth as int
        ) as age,
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
    left join ahead
        on
            indices.task = ahead.task
            and indices.cohort = ahead.cohort
            and indices.person_id = ahead.person_id

)

select * from final
