-- One row per cohort, stratum and concept: the share of the stratum's persons who have it.
{%- set dimensions = {
    'gender': 'gender_concept_id', 'age': 'age_group',
    'race': 'race_concept_id', 'decade': 'decade',
} %}
with

persons as (

    select * from {{ ref('population_persons') }}

),

concepts as (

    select * from {{ ref('population_concepts') }}

),

-- once over the rows of persons; the strata are sums of these cells
cells as (

    select
        persons.cohort,
        persons.gender_concept_id,
        persons.age_group,
        persons.race_concept_id,
        persons.decade,
        concepts.source_table,
        concepts.concept_id,
        count(*) as persons,
        sum(concepts.event_count) as events
    from concepts
    inner join persons
        on
            concepts.cohort = persons.cohort
            and concepts.person_id = persons.person_id
    group by 1, 2, 3, 4, 5, 6, 7

),

counted as (

    {% for dimension, column in dimensions.items() -%}
    select
        cohort,
        '{{ dimension }}' as dimension,
        cast({{ column }} as {{ dbt.type_string() }}) as stratum,
        source_table,
        concept_id,
        cast(sum(persons) as bigint) as persons,
        cast(sum(events) as bigint) as events
    from cells
    where {{ column }} is not null
    group by 1, 2, 3, 4, 5
    {{ 'union all ' if not loop.last }}
    {%- endfor %}

),

strata as (

    {% for dimension, column in dimensions.items() -%}
    select
        cohort,
        '{{ dimension }}' as dimension,
        cast({{ column }} as {{ dbt.type_string() }}) as stratum,
        count(*) as stratum_persons
    from persons
    where {{ column }} is not null
    group by 1, 2, 3
    {{ 'union all ' if not loop.last }}
    {%- endfor %}

),

final as (

    select
        counted.*,
        strata.stratum_persons,
        counted.persons / cast(strata.stratum_persons as double) as share
    from counted
    inner join strata
        on
            counted.cohort = strata.cohort
            and counted.dimension = strata.dimension
            and counted.stratum = strata.stratum

)

select * from final
