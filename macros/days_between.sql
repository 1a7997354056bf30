{#- Whole days from one date to another, below 0 where the second is the earlier. -#}
{% macro days_between(first_date, second_date) -%}
    cast({{ dbt.datediff(first_date, second_date, 'day') | trim }} as int)
{%- endmacro %}
