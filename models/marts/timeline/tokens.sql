-- One row per person and token position, in order: Spark only cuts it into sequences.
{{ config(post_hook="{{ write_tokens(var('timeline_folder')) }}") }}
with

placed as (

    select
        part,
        person_id,
        split,
        first_position,
        {{ run_tokens() }} as token_ids -- noqa: PRS
    from {{ ref('int_tokens_placed') }}

),

positioned as (

    {{ unnest_tokens(
        'placed', ['part', 'person_id', 'split', 'first_position'], 'token_ids'
    ) }}

),

vocabulary as (

    select * from {{ ref('int_vocabulary') }}

),

final as (

    select
        positioned.person_id,
        positioned.split,
        cast(positioned.first_position + positioned.position - 1 as int) as position,
        positioned.token_id,
        vocabulary.token,
        vocabulary.kind,
        positioned.part
    from positioned
    left join vocabulary on positioned.token_id = vocabulary.token_id

)

select * from final
