-- One row per person that dies.
with

persons as (

    select * from {{ ref('int_persons_told') }}

),

final as (

    select
        person_id,
        death_position as position,
        death_date
    from persons
    where death_position is not null

)

select * from final
