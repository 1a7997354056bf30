-- One row per row of the source table.
with

source as (

    select * from {{ source('omop', 'death') }}

),

typed as (

    select
        cast(person_id as bigint) as person_id,
        cast(death_date as date) as death_date
    from source

)

select * from typed
