{#- The ordered events of the persons that training sees. -#}
{% macro events_of_training() -%}
    select events.*
    from {{ ref('int_events_ordered') }} as events
    inner join {{ ref('int_persons_started') }} as persons
        on events.person_id = persons.person_id
    where persons.split = 'train'
{%- endmacro %}
