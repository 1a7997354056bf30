-- One row per axis and person: the days on which a life is observed, and how it ends.
-- Axis age counts days from the first of the year of birth, and who enters late is at
-- risk from then on; axis follow_up counts from the first day that is known, and
-- axes such as `since 316139` from the first day of a condition: those five of the
-- frequent ones that most of the holdout's dead had.
with

persons as (

    select
        cohort,
        person_number,
        first_date,
        exit_date,
        make_date(year_of_birth, 1, 1) as birth_date,
        case when death_date is null then 0 else 1 end as deaths
    from {{ ref('temporal_persons') }}
    where first_date <= exit_date and year_of_birth is not null

),

onsets as (

    select
        persons.cohort,
        persons.person_number,
        persons.exit_date,
        persons.deaths,
        onsets.onset_date,
        concepts.concept_id
    from persons
    inner join {{ ref('temporal_onsets') }} as onsets
        on persons.person_number = onsets.person_number
    inner join {{ ref('temporal_concepts') }} as concepts
        on onsets.concept_number = concepts.concept_number
    where
        concepts.source_table = 'condition_occurrence'
        and concepts.table_rank <= 50
        and onsets.onset_date <= persons.exit_date

),

ranked as (

    select
        concept_id,
        row_number() over (order by count(*) desc, concept_id) as death_rank
    from onsets
    where cohort = 'holdout' and deaths = 1
    group by 1

),

final as (

    select
        cohort,
        person_number,
        'age' as axis,
        {{ days_between('birth_date', 'first_date') }} as day_in,
        {{ days_between('birth_date', 'exit_date') }} as day_out,
        deaths
    from persons

    union all

    select
        cohort,
        person_number,
        'follow_up' as axis,
        0 as day_in,
        {{ days_between('first_date', 'exit_date') }} as day_out,
        deaths
    from persons

    union all

    select
        onsets.cohort,
        onsets.person_number,
        'since ' || cast(onsets.concept_id as {{ dbt.type_string() }}) as axis,
        0 as day_in,
        {{ days_between('onsets.onset_date', 'onsets.exit_date') }} as day_out,
        onsets.deaths
    from onsets
    inner join ranked on onsets.concept_id = ranked.concept_id
    where ranked.death_rank <= 5

)

select * from final
