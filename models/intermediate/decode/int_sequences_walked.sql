-- One row per sequence, walked through the grammar token by token: whether the
-- vocabulary has all of its tokens, and whether it is a whole history. Its third word
-- says the age in its first year, or that nobody knows.
{{ config(post_hook="{{ walk_by_python() }}") }}
{%- set next_state = array_get(
    'next_states.state_orders',
    'so_far * next_states.kind_count - 1 + '
    ~ array_get('token_kinds.kind_orders', 'element')
) %}
with

sequences as (

    {{ all_sequences() }}

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
        {{ array_get(
            'token_kinds.kind_orders', array_get('sequences.token_ids', 0)
        ) }} as first_kind,
        {{ array_get(
            'token_kinds.kind_orders', array_get('sequences.token_ids', 2)
        ) }} as third_kind,
        -- sqlfluff cannot read DuckDB's lambda
        {{ fold('sequences.token_ids', 1, next_state) }} as state_order -- noqa: PRS
    from sequences
    cross join token_kinds
    cross join next_states

),

final as (

    select
        walked.person_id,
        walked.token_ids,
        {{ array_size('walked.token_ids') }} as token_count,
        walked.token_ids is null or walked.state_order is not null as is_known,
        ended.state is not null and opened.kind is not null as is_whole,
        unknown_age.kind is null as has_age
    from walked
    left join states as ended
        on walked.state_order = ended.state_order and ended.place = 'end'
    -- a later chunk of a history is no history
    left join kinds as opened
        on walked.first_kind = opened.kind_order and opened.makes = 'person'
    left join kinds as unknown_age
        on
            walked.third_kind = unknown_age.kind_order
            and unknown_age.kind = 'age_unknown'

)

select * from final
