{#-
    Join spans that overlap or follow one another into eras, as OHDSI does: a span opens
    an era if it starts more than `days` after the latest end of those before it.
    `spans` names a CTE with the columns of `keys`, start_date and end_date. Of each era:
    the keys, start_date, end_date, how many spans it has (span_count), and how many of
    its days lie in no span (gap_days).

    DuckDB sorts the spans of all keys once, and looks back at them as they lie. What is
    the latest day of some keys is not of the next: the place of the keys, times 2^32, is
    added to each. Elsewhere the spans of some keys are a window of their own.
-#}
{% macro eras(spans, keys, days) -%}
    {%- set per = keys | join(', ') %}
    {%- set is_sorted = target.type == 'duckdb' %}
    {%- set in_order = '' if is_sorted else 'partition by ' ~ per ~ ' order by place' %}
    {%- set so_far = in_order ~ ' rows between unbounded preceding and current row' %}
    with

    {% if is_sorted -%}
    spans_in_order as (

        select * from {{ spans }}
        order by {{ per }}, start_date, end_date

    ),

    placed as (

        select
            *,
            row_number() over () as place
        from spans_in_order

    ),
    {%- else -%}
    placed as (

        select
            *,
            row_number() over (
                partition by {{ per }} order by start_date, end_date
            ) as place
        from {{ spans }}

    ),
    {%- endif %}

    compared as (

        select
            *,
            {{ days_between("date '1970-01-01'", 'start_date') }} as start_day,
            {{ days_between("date '1970-01-01'", 'end_date') }} as end_day,
            {%- for key in keys %}
            {{ 'or ' if not loop.first -}}
            ({{ key }} is distinct from lag({{ key }}) over ({{ in_order }}))
            {%- endfor %} as is_first
        from placed

    ),

    numbered as (

        select
            *,
            count(case when is_first then 1 end) over ({{ so_far }}) * 4294967296
                as keys_before
        from compared

    ),

    run_through as (

        select
            *,
            max(keys_before + end_day) over ({{ so_far }}) as latest
        from numbered

    ),

    looked_back as (

        select
            *,
            start_day - (lag(latest) over ({{ in_order }}) - keys_before) as days_since
        from run_through

    ),

    opened as (

        select
            *,
            is_first or days_since > {{ days }} as opens
        from looked_back

    ),

    closed as (

        select
            *,
            coalesce(lead(opens) over ({{ in_order }}), true) as closes,
            cast(sum(
                case when not opens and days_since > 0 then days_since else 0 end
            ) over ({{ so_far }}) as bigint) as days_out
        from opened

    ),

    -- of the first and the last span of each era
    ends as (

        select
            *,
            lag(start_date) over ({{ in_order }}) as opened_on,
            lag(place) over ({{ in_order }}) as opened_at,
            lag(days_out) over ({{ in_order }}) as days_out_before
        from closed
        where opens or closes

    )

    select
        {{ per }},
        case when opens then start_date else opened_on end as start_date,
        cast({{ dbt.dateadd(
            'day', 'cast(latest - keys_before as int)', "date '1970-01-01'"
        ) }} as date) as end_date,
        case when opens then 1 else place - opened_at + 1 end as span_count,
        case when opens then 0 else days_out - days_out_before end as gap_days
    from ends
    where closes
{%- endmacro %}

{#- Ids of eras(), by their keys and days: on DuckDB they lie in this order. -#}
{% macro era_id(keys) -%}
    row_number() over (
        {{- 'order by ' ~ keys | join(', ') ~ ', start_date' if target.type != 'duckdb' }})
{%- endmacro %}
