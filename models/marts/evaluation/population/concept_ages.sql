-- One row per cohort, concept and ten years of age: persons who have it then for the
-- first time.
with

concepts as (

    select * from {{ ref('population_concepts') }}

),

persons as (

    select * from {{ ref('population_persons') }}

),

joined as (

    select
        concepts.cohort,
        concepts.source_table,
        concepts.concept_id,
        10 * cast(
            floor(
                (extract(year from concepts.first_date) - persons.year_of_birth) / 10.0
            ) as int
        ) as age_from
    from concepts
    inner join persons
        on
            concepts.cohort = persons.cohort
            and concepts.person_id = persons.person_id
    where persons.year_of_birth is not null

),

final as (

    select
        cohort,
        source_table,
        concept_id,
        age_from,
        count(*) as persons
    from joined
    group by 1, 2, 3, 4

)

select * from final
