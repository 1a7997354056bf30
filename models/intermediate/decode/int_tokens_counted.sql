-- One row per token of an accepted sequence: the visit and event that it belongs to,
-- and where the cursor stands after it.
{{ config(post_hook="{{ read_by_python() }}") }}
{#- the hook reads of them, and dbt looks for them here -#}
{%- if not execute %}
    {%- do language_queries() %}
    {%- do numbers_drawn() %}
    {%- do ref('event_tables') %}
{%- endif %}
with

sequences as (

    select person_id, token_ids from {{ ref('int_sequences_checked') }}
    where reason is null

),

vocabulary as (

    select
        vocabulary.token_id,
        {{ steps_of_tokens() }}
    from {{ ref('stg_generated__vocabulary') }} as vocabulary
    -- an id without a kind keeps its place among the others
    left join {{ ref('kinds') }} as kinds on vocabulary.kind = kinds.kind

),

unnested as (

    {{ unnest_tokens('sequences', ['person_id'], 'token_ids') }}

),

counted as (

    select
        unnested.person_id,
        unnested.position,
        unnested.token_id,
        sum(vocabulary.visits) over so_far as visit_order,
        sum(vocabulary.events) over so_far as event_number,
        sum(vocabulary.days) over so_far as cursor_days,
        max(vocabulary.years) over so_far as start_year,
        -- the hour that was said last, with the place where it was
        max(
            case
                when vocabulary.hours > -2
                    then unnested.position * 32 + vocabulary.hours + 1
            end
        ) over so_far % 32 - 1 as last_hour
    from unnested
    inner join vocabulary on unnested.token_id = vocabulary.token_id
    window so_far as (partition by unnested.person_id order by unnested.position)

),

final as (

    select
        person_id,
        cast(position as int) as position,
        cast(token_id as int) as token_id,
        cast(visit_order as int) as visit_order,
        cast(event_number as int) as event_number,
        cast(case when last_hour >= 0 then last_hour end as int) as hour,
        cast(case when position > 1 and start_year > 0 then {{ dbt.dateadd(
            'day',
            'cursor_days',
            "cast(lpad(cast(start_year as " ~ dbt.type_string()
            ~ "), 4, '0') || '-01-01' as date)"
        ) }} end as date) as cursor_date
    from counted

)

select * from final
