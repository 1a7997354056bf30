-- One row per cohort, treated condition and sequence of drug classes: who follow it.
-- Sequences are the twenty most frequent of the holdout; all others are one: 'other'.
with

persons as (

    select
        cohort,
        concept_id,
        {{ dbt.concat([
            "coalesce(cast(first_drug as " ~ dbt.type_string() ~ "), 'none')",
            "coalesce(" ~ dbt.concat(["' > '", "cast(second_drug as " ~ dbt.type_string() ~ ")"]) ~ ", '')",
            "coalesce(" ~ dbt.concat(["' > '", "cast(third_drug as " ~ dbt.type_string() ~ ")"]) ~ ", '')",
        ]) }} as pathway
    from {{ ref('temporal_pathways') }}

),

counted as (

    select
        cohort,
        concept_id,
        pathway,
        count(*) as persons
    from persons
    group by 1, 2, 3

),

ranked as (

    select
        concept_id,
        pathway,
        row_number() over (
            partition by concept_id
            order by persons desc, pathway asc
        ) as pathway_rank
    from counted
    where cohort = 'holdout'

),

named as (

    select
        counted.cohort,
        counted.concept_id,
        case
            when ranked.pathway_rank <= 20 then counted.pathway
            else 'other'
        end as pathway,
        counted.persons
    from counted
    left join ranked
        on
            counted.concept_id = ranked.concept_id
            and counted.pathway = ranked.pathway

),

final as (

    select
        cohort,
        concept_id,
        pathway,
        cast(sum(persons) as bigint) as persons
    from named
    group by 1, 2, 3

)

select * from final
