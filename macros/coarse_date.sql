{#-
    A date as var `att_type` writes it: the day, or the first day of its week of 7 or
    month of 30 days, counted from an anchor. All dates of a person are put on one grid,
    so that gaps add up: rounding each gap by itself would drift by days with each visit.
-#}
{% macro coarse_date(date, anchor) -%}
    {%- set days = {'day': 1, 'week': 7, 'month': 30}[var('att_type')] -%}
    {%- if days == 1 -%}
        {{ date }}
    {%- else -%}
        cast({{ dbt.dateadd(
            'day',
            'cast(floor(' ~ days_between(anchor, date) ~ ' / ' ~ days ~ '.0) * ' ~ days
            ~ ' as int)',
            anchor
        ) }} as date)
    {%- endif -%}
{%- endmacro %}
