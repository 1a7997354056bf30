{#- Every value lies between these two, or is NULL. -#}
{% test in_range(model, column_name, least, largest) %}

select {{ column_name }}
from {{ model }}
where {{ column_name }} < {{ least }} or {{ column_name }} > {{ largest }}

{% endtest %}
