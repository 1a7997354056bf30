-- One row per row of the source table.
with

source as (

    select * from {{ source('omop', 'concept') }}

),

typed as (

    select
        cast(concept_id as bigint) as concept_id,
        cast(concept_name as {{ dbt.type_string() }}) as concept_name,
        cast(domain_id as {{ dbt.type_string() }}) as domain_id,
        cast(vocabulary_id as {{ dbt.type_string() }}) as vocabulary_id,
        cast(concept_class_id as {{ dbt.type_string() }}) as concept_class_id,
        cast(standard_concept as {{ dbt.type_string() }}) as standard_concept,
        cast(concept_code as {{ dbt.type_string() }}) as concept_code
    from source

)

select * from typed
