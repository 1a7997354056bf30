-- One row per person and token position, in order: Spark only cuts it into sequences.
with

placed as (

    select * from {{ ref('int_tokens_placed') }}

),

vocabulary as (

    select * from {{ ref('int_vocabulary') }}

),

persons as (

    select * from {{ ref('int_persons_started') }}

),

positioned as (

    select
        person_id,
        token_id,
        row_number() over (
            partition by person_id
            order by visit_order, event_order, slot
        ) as position
    from placed

),

final as (

    select
        positioned.person_id,
        persons.split,
        cast(positioned.position as int) as position,
        positioned.token_id,
        vocabulary.token,
        vocabulary.kind,
        persons.part
    from positioned
    inner join persons on positioned.person_id = persons.person_id
    left join vocabulary on positioned.token_id = vocabulary.token_id

)

select * from final
order by part, person_id, position
