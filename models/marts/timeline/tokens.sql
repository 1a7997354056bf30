-- One row per person and token position, in order: Spark only cuts it into sequences.
{{ config(post_hook="{{ write_tokens(var('timeline_folder')) }}") }}
-- depends_on: {{ ref('int_persons_started') }}
-- depends_on: {{ ref('int_persons_kept') }}
-- depends_on: {{ ref('int_histories_ordered') }}
-- depends_on: {{ ref('int_event_tokens') }}
-- depends_on: {{ ref('int_days_spelled') }}
with

placed as (

    select
        person_id,
        split,
        step_order,
        {{ run_tokens() }} as token_ids -- noqa: PRS
    from {{ ref('int_tokens_placed') }}

),

unnested as (

    {{ unnest_tokens('placed', ['person_id', 'split', 'step_order'], 'token_ids') }}

),

positioned as (

    select
        person_id,
        split,
        cast(row_number() over (
            partition by person_id order by step_order, position
        ) as int) as position,
        token_id
    from unnested

){%- if has_before() %},

united_with_kept as (

    select * from positioned
    union all
    select
        earlier.person_id,
        earlier.split,
        earlier.position,
        earlier.token_id
    from {{ before_file('tokens') }} as earlier
    inner join {{ ref('int_persons_kept') }} as kept
        on earlier.person_id = kept.person_id

)
{%- endif %},

vocabulary as (

    select * from {{ ref('int_vocabulary') }}

),

final as (

    select
        tokens.person_id,
        tokens.split,
        tokens.position,
        tokens.token_id,
        vocabulary.token,
        vocabulary.kind
    from {{ 'united_with_kept' if has_before() else 'positioned' }} as tokens
    left join vocabulary on tokens.token_id = vocabulary.token_id

)

select * from final
