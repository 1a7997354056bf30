{#-
    No number is there twice. On DuckDB rows lie in the order of the column: a number that
    is not above the one before it fails, which is found in a tenth of the time.
-#}
{% test ascending(model, column_name) %}
{%- if target.type == 'duckdb' %}

select *
from (
    select
        {{ column_name }},
        lag({{ column_name }}) over () as before
    from {{ model }}
) as looked_back
where {{ column_name }} <= before

{%- else %}

select {{ column_name }}
from {{ model }}
group by {{ column_name }}
having count(*) > 1

{%- endif %}
{% endtest %}
