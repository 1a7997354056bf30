-- One row per number of days as a gap, a move or an end, with the tokens that spell
-- it: the walks through the grammar from where it may start to where it is complete.
with

transitions as (

    select * from {{ ref('transitions') }}

),

tokens as (

    select
        tokens.token,
        tokens.kind,
        tokens.days,
        kinds.role
    from {{ ref('fixed_tokens') }} as tokens
    inner join {{ ref('kinds') }} as kinds on tokens.kind = kinds.kind
    where
        kinds.role in ('gap', 'move', 'end')
        and tokens.scheme = '{{ var("att_type") }}'

),

steps as (

    select
        transitions.state,
        transitions.next_state,
        tokens.role,
        tokens.token,
        tokens.days,
        states.place = 'days' as is_underway
    from transitions
    inner join tokens on transitions.kind = tokens.kind
    inner join {{ ref('states') }} as states on transitions.next_state = states.state

),

first_steps as (

    select * from steps
    where
        (role = 'gap' and state = 'between')
        or (role = 'move' and state = 'visit')
        or (role = 'end' and state = 'visit_event')

),

walks as (

    select
        first_steps.role,
        first_steps.token as token_1,
        second_steps.token as token_2,
        third_steps.token as token_3,
        first_steps.days
        + coalesce(second_steps.days, 0)
        + coalesce(third_steps.days, 0) as days
    from first_steps
    left join steps as second_steps
        on
            first_steps.is_underway
            and first_steps.next_state = second_steps.state
            and first_steps.role = second_steps.role
    left join steps as third_steps
        on
            second_steps.is_underway
            and second_steps.next_state = third_steps.state
            and second_steps.role = third_steps.role

)

select * from walks
