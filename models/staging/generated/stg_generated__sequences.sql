-- One row per sequence: a patient's tokens in order.
with

source as (

    select * from {{ source('generated', 'sequences') }}

),

typed as (

    select
        cast(person_id as bigint) as person_id,
        token_ids
    from source

)

select * from typed
