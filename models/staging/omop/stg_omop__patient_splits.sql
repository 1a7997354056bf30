-- One row per row of the source table.
with

source as (

    select * from {{ source('omop', 'patient_splits') }}

),

typed as (

    select
        cast(person_id as bigint) as person_id,
        cast(split as {{ dbt.type_string() }}) as split
    from source

)

select * from typed
