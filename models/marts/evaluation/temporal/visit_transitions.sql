-- One row per cohort and pair of states that follow each other: types of visits, START
-- before the first, END or DEATH after the last.
with

visits as (

    select * from {{ ref('temporal_visits') }}

),

persons as (

    select * from {{ ref('temporal_persons') }}

),

steps as (

    select
        cohort,
        'START' as from_state,
        cast(visit_concept_id as {{ dbt.type_string() }}) as to_state
    from visits
    where visit_order = 1

    union all

    select
        visits.cohort,
        cast(visits.visit_concept_id as {{ dbt.type_string() }}) as from_state,
        case
            when visits.visit_order < visits.visit_count
                then cast(visits.next_visit_concept_id as {{ dbt.type_string() }})
            when persons.death_date is null then 'END'
            else 'DEATH'
        end as to_state
    from visits
    inner join persons on visits.person_number = persons.person_number

),

counted as (

    select
        cohort,
        coalesce(from_state, 'UNKNOWN') as from_state,
        coalesce(to_state, 'UNKNOWN') as to_state,
        count(*) as transitions
    from steps
    group by 1, 2, 3

),

final as (

    select
        *,
        transitions / cast(
            sum(transitions) over (partition by cohort, from_state) as double
        ) as share -- noqa: RF04
    from counted

)

select * from final
