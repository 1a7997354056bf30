-- One row per event token, field (number or quantity) and value that training has.
with

events as (

    select * from {{ ref('int_events_distinct') }}

),

train as (

    select person_id from {{ ref('int_persons_checked') }}
    where reason is null and split = 'train'

),

numbers as (

    select events.token_order, 'number' as field, events.value_as_number as number
    from events
    inner join train on events.person_id = train.person_id
    where events.value_as_number is not null

    union all

    select events.token_order, 'quantity' as field, events.quantity as number
    from events
    inner join train on events.person_id = train.person_id
    where events.quantity is not null

),

counted as (

    select
        token_order,
        field,
        number,
        count(*) as train_count
    from numbers
    group by 1, 2, 3

)

select * from counted
