-- One row per cohort, stratum and concept: the share of its persons who have it.
{%- set stratum_name -%}
    case dimensions.dimension
            when 'gender' then cast(gender_concept_id as {{ dbt.type_string() }})
            when 'race' then cast(race_concept_id as {{ dbt.type_string() }})
            when 'decade' then cast(decade as {{ dbt.type_string() }})
            when 'age' then age_group
        end
{%- endset %}
with

persons as (

    select * from {{ ref('population_persons') }}

),

concepts as (

    select * from {{ ref('population_concepts') }}

),

dimensions as (

    select 'gender' as dimension
    union all
    select 'race' as dimension
    union all
    select 'decade' as dimension
    union all
    select 'age' as dimension

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

    select
        cells.cohort,
        dimensions.dimension,
        {{ stratum_name }} as stratum,
        cells.source_table,
        cells.concept_id,
        cast(sum(cells.persons) as bigint) as persons,
        cast(sum(cells.events) as bigint) as events
    from cells
    cross join dimensions
    group by 1, 2, 3, 4, 5

),

strata as (

    select
        persons.cohort,
        dimensions.dimension,
        {{ stratum_name }} as stratum,
        count(*) as stratum_persons
    from persons
    cross join dimensions
    group by 1, 2, 3

),

final as (

    select
        counted.*,
        strata.stratum_persons,
        counted.persons / cast(strata.stratum_persons as double) as share -- noqa: RF04
    from counted
    -- who is of no stratum is NULL, and has no row
    inner join strata
        on
            counted.cohort = strata.cohort
            and counted.dimension = strata.dimension
            and counted.stratum = strata.stratum

)

select * from final
