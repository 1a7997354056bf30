{#-
    Join spans that overlap or follow one another into eras, as OHDSI does: a span opens
    an era if it starts more than `days` after the latest end of those before it.
    `spans` names a CTE with the columns of `keys`, start_date and end_date; `columns`
    are aggregates of the spans of an era, and of what is known of each: `days_since`
    that latest end, which is NULL in the first.
-#}
{% macro eras(spans, keys, days, columns=[]) -%}
    {%- set per = keys | join(', ') %}
    select
        {{ per }},
        min(start_date) as start_date,
        max(end_date) as end_date
        {%- for column in columns %},
        {{ column }}
        {%- endfor %}
    from (
        select
            *,
            sum(case when days_since <= {{ days }} then 0 else 1 end) over (
                partition by {{ per }}
                -- of equal spans the one that was looked back from first, first
                order by start_date, end_date, days_since desc nulls first
                rows between unbounded preceding and current row
            ) as era_number
        from (
            select
                *,
                {{ days_between(
                    'max(end_date) over ('
                    ~ 'partition by ' ~ per ~ ' order by start_date, end_date '
                    ~ 'rows between unbounded preceding and 1 preceding)',
                    'start_date'
                ) }} as days_since
            from {{ spans }}
        ) as looked_back
    ) as numbered
    group by {{ per }}, era_number
{%- endmacro %}
