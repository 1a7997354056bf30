{#-
    CTE `counted`: running counts of each sequence's tokens. DuckDB adds up all sequences
    as they lie, in one pass without a sort, and takes off what was there at each start;
    elsewhere each person is a window of its own.
-#}
{% macro count_tokens() %}
    {{ return(adapter.dispatch('count_tokens', 'omop_gpt')()) }}
{% endmacro %}

{% macro default__count_tokens() -%}
unnested as (

    {{ unnest_tokens('sequences', ['person_id'], 'token_ids') }}

),

counted as (

    select
        unnested.person_id,
        unnested.position,
        unnested.token_id,
        {%- for column, aggregate in {
            'visit_order': 'sum(vocabulary.visits)',
            'event_number': 'sum(vocabulary.events)',
            'cursor_days': 'sum(vocabulary.days)',
            'last_hour': 'max(unnested.position * 32 + vocabulary.hour_now)',
            'start_year': "max(case when vocabulary.kind = 'year' then number end)",
        }.items() %}
        {{ aggregate }}
            over (partition by unnested.person_id order by unnested.position)
            as {{ column }}{{ ',' if not loop.last }}
        {%- endfor %}
    from unnested
    inner join vocabulary on unnested.token_id = vocabulary.token_id

)
{%- endmacro %}

{#-
    Visits and events are added up in one number (visits above bit 32), days start anew
    with a sequence's number above bit 36: both only grow from start to start, so the
    largest of the starts is the last.
-#}
{% macro duckdb__count_tokens() -%}
{%- set so_far = 'over (rows between unbounded preceding and current row)' -%}
lists as (

    -- what is counted of each token id, as lists: looking up in one keeps the order
    select
        {%- for column in ['visits * 4294967296 + events', 'days', 'hour_now'] %}
        list(cast({{ column }} as bigint) order by token_id) as list_{{ loop.index }},
        {%- endfor %}
        list(case when kind = 'year' then number end order by token_id) as years
    from vocabulary

),

ordered as (

    select
        person_id,
        token_ids,
        row_number() over () as sequence_number
    from (select * from sequences order by person_id) as sorted

),

unnested as (

    select
        person_id,
        sequence_number,
        token_ids[2] as year_id,
        generate_subscripts(token_ids, 1) as position,
        unnest(token_ids) as token_id
    from ordered

),

numbered as (

    select
        *,
        row_number() over () as token_number
    from unnested

),

looked_up as (

    select
        numbered.*,
        lists.list_1[token_id + 1] as counts,
        lists.list_2[token_id + 1] as days,
        lists.list_3[token_id + 1] as hour_now,
        lists.years[year_id + 1] as start_year
    from numbered
    cross join lists

),

summed as (

    select
        *,
        row_number() over () as line_number,
        cast(sum(counts) {{ so_far }} as bigint) as all_counts,
        cast(sum(days) {{ so_far }} as bigint) as all_days,
        max(token_number * 32 + hour_now) {{ so_far }} as last_hour
    from looked_up

),

started as (

    select
        *,
        max(case when position = 1 then all_counts end) {{ so_far }} as start_counts,
        max(case
            when position = 1
                then (sequence_number << 36) + all_days + (1::bigint << 35)
        end) {{ so_far }} % (1::bigint << 36) - (1::bigint << 35) as start_days
    from summed

),

counted as (

    select
        -- every sum is wrong if they do not lie as they were numbered
        case
            when line_number = token_number then person_id
            else error('rows of tokens are out of order')
        end as person_id,
        position,
        token_id,
        (all_counts >> 32) - (start_counts >> 32) as visit_order,
        all_counts % 4294967296 - start_counts % 4294967296 as event_number,
        last_hour,
        cast(all_days - start_days as int) as cursor_days,
        start_year
    from started

)
{%- endmacro %}
