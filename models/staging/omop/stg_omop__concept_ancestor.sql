-- One row per row of the source table.
with

source as (

    select * from {{ source('omop', 'concept_ancestor') }}

),

typed as (

    select
        cast(ancestor_concept_id as bigint) as ancestor_concept_id,
        cast(descendant_concept_id as bigint) as descendant_concept_id,
        cast(min_levels_of_separation as int) as min_levels_of_separation
    from source

)

select * from typed
