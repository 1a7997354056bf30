-- One row per row of the source table.
with

source as (

    select * from {{ source('omop', 'concept') }}

),

typed as (

    select
        cast(concept_id as bigint) as concept_id,
        cast(concept_name as {{ dbt.type_string() }}) as concept_name,
        cast(domain_id as {{ dbt.type_string() }}) as domain_id
    from source

)

select * from typed
