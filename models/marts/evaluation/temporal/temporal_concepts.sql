-- One row per concept of any cohort, numbered by the persons of the holdout with it.
with

events as (

    select * from {{ source('cohorts', 'events') }}

),

concepts as (

    select distinct
        source_table,
        concept_id
    from events

),

holdout as (

    select
        source_table,
        concept_id,
        count(distinct person_id) as persons
    from events
    where cohort = 'holdout'
    group by 1, 2

),

final as (

    select
        cast(
            row_number() over (
                order by
                    coalesce(holdout.persons, 0) desc,
                    concepts.source_table asc,
                    concepts.concept_id asc
            ) as int
        ) as concept_number,
        cast(
            row_number() over (
                partition by concepts.source_table
                order by coalesce(holdout.persons, 0) desc, concepts.concept_id asc
            ) as int
        ) as table_rank,
        concepts.source_table,
        concepts.concept_id,
        coalesce(holdout.persons, 0) as persons
    from concepts
    left join holdout
        on
            concepts.source_table = holdout.source_table
            and concepts.concept_id = holdout.concept_id

)

select * from final
