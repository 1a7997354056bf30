-- Every state is reached from the start, and from every state that is reached the end
-- can be reached: in decoding by all transitions, in sampling by those that it may use.
{{ config(tags=['encode'], enabled=(target.type == 'duckdb')) }}
with recursive

ways as (

    select 'decoding' as mode, state, next_state from {{ ref('transitions') }}
    union all
    select 'sampling' as mode, state, next_state from {{ ref('transitions') }}
    where is_sampled = 1

),

reached as (

    select distinct mode, 'start' as state from ways
    union
    select ways.mode, ways.next_state as state
    from ways
    inner join reached on ways.mode = reached.mode and ways.state = reached.state

),

ended as (

    select distinct ways.mode, states.state
    from ways
    cross join {{ ref('states') }} as states
    where states.place = 'end'
    union
    select ways.mode, ways.state
    from ways
    inner join ended on ways.mode = ended.mode and ways.next_state = ended.state

),

unreached as (

    select 'decoding' as mode, states.state, 'not reached' as problem
    from {{ ref('states') }} as states
    left join reached on states.state = reached.state and reached.mode = 'decoding'
    where reached.state is null

),

stuck as (

    select reached.mode, reached.state, 'cannot end' as problem
    from reached
    left join ended on reached.mode = ended.mode and reached.state = ended.state
    where ended.state is null

)

select * from unreached
union all
select * from stuck
