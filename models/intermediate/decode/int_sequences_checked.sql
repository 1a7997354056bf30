-- One row per sequence: accepted, or with the reason why no row is made of it. The
-- grammar is walked token by token; only a whole history is accepted.
{%- set next_state = array_get(
    'next_states.state_orders',
    'so_far * next_states.kind_count - 1 + '
    ~ array_get('token_kinds.kind_orders', 'element')
) %}
with

sequences as (

    select * from {{ ref('stg_generated__sequences') }}

),

kinds as (

    select * from {{ ref('kinds') }}

),

states as (

    select * from {{ ref('states') }}

),

-- kind_order of each token id, and the next state of each state and kind (0: none)
token_kinds as (

    select
        {{ collect('kinds.kind_order', order_by='vocabulary.token_id') }} as kind_orders
    from {{ ref('stg_generated__vocabulary') }} as vocabulary
    -- a kind that this grammar lacks keeps its place: its tokens are unknown ones
    left join kinds on vocabulary.kind = kinds.kind

),

all_states as (

    select state_order, state from states
    union all
    select 0 as state_order, cast(null as {{ dbt.type_string() }}) as state

),

next_states as (

    select
        {{ collect(
            'coalesce(next_states.state_order, 0)',
            order_by=['all_states.state_order', 'kinds.kind_order']
        ) }} as state_orders,
        max(kinds.kind_order) as kind_count
    from all_states
    cross join kinds
    left join {{ ref('transitions') }} as transitions
        on all_states.state = transitions.state and kinds.kind = transitions.kind
    left join states as next_states on transitions.next_state = next_states.state

),

walked as (

    select
        sequences.person_id,
        sequences.token_ids,
        {{ array_size('sequences.token_ids') }} as token_count,
        {{ array_get(
            'token_kinds.kind_orders', array_get('sequences.token_ids', 0)
        ) }} as first_kind,
        -- sqlfluff cannot read DuckDB's lambda
        {{ fold('sequences.token_ids', 1, next_state) }} as state_order, -- noqa: PRS
        row_number() over (
            partition by sequences.person_id
            order by sequences.token_ids
        ) as repetition
    from sequences
    cross join token_kinds
    cross join next_states

),

checked as (

    select
        walked.person_id,
        walked.token_ids,
        walked.token_count,
        case
            when walked.person_id is null then 'no_person_id'
            when walked.repetition > 1 then 'repeated_person'
            when walked.token_count = 0 or walked.token_count is null then 'empty'
            when walked.state_order is null then 'unknown_token'
            when ended.state is null or opened.kind is null then 'not_in_grammar'
        end as reason
    from walked
    left join states as ended
        on walked.state_order = ended.state_order and ended.place = 'end'
    -- a later chunk of a history is no history
    left join kinds as opened
        on walked.first_kind = opened.kind_order and opened.makes = 'person'

)

select * from checked
