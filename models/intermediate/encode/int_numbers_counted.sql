-- One row per event token, field (number or quantity) and value that training has.
with

train as (

    select person_id from {{ ref('int_persons_checked') }}
    where reason is null and split = 'train'

),

-- rows that repeat one another are one event
events as (

    select distinct
        events.person_id,
        events.visit_occurrence_id,
        events.{{ written_of_event() | join(',\n        events.') }}
    from {{ ref('int_events_written') }} as events
    inner join train on events.person_id = train.person_id
    where events.value_as_number is not null or events.quantity is not null

),

numbers as (

    select token_order, 'number' as field, value_as_number as number
    from events
    where value_as_number is not null

    union all

    select token_order, 'quantity' as field, quantity as number
    from events
    where quantity is not null

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
