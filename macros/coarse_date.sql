{#- Days between two dates that var `att_type` can write: 1, a week of 7, a month of 30. -#}
{% macro grid_days() %}
    {{- return({'day': 1, 'week': 7, 'month': 30}[var('att_type')]) }}
{% endmacro %}

{#-
    A date as var `att_type` writes it: the day, or the first day of its week or month,
    counted from an anchor. All dates of a person are put on one grid,
    so that gaps add up: rounding each gap by itself would drift by days with each visit.
-#}
{% macro coarse_date(date, anchor) -%}
    {%- set days = grid_days() -%}
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
