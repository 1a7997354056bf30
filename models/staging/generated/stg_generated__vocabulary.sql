-- One row per token, with its meaning.
with

source as (

    select * from {{ source('generated', 'vocabulary') }}

),

typed as (

    select
        cast(token_id as int) as token_id,
        cast(token as {{ dbt.type_string() }}) as token,
        cast(kind as {{ dbt.type_string() }}) as kind,
        cast(days as int) as days,
        cast(number as bigint) as number,
        cast(source_table as {{ dbt.type_string() }}) as source_table,
        cast(concept_id as bigint) as concept_id,
        cast(unit_concept_id as bigint) as unit_concept_id,
        cast(source_concept_id as bigint) as source_concept_id,
        cast(name as {{ dbt.type_string() }}) as name
    from source

)

select * from typed
