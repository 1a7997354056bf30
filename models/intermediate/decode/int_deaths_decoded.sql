-- One row per person that dies.
with

tokens as (

    select * from {{ ref('int_tokens_typed') }}

),

final as (

    select
        person_id,
        position,
        cursor_date as death_date
    from tokens
    where kind = 'death'

)

select * from final
