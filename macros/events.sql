{#- What is written of an event, within its visit: rows alike in all of it are one event. -#}
{% macro written_of_event() %}
    {{- return([
        'event_date', 'hour', 'token_order', 'value_as_number', 'operator_concept_id',
        'value_as_concept_id', 'quantity', 'days_supply', 'end_date',
    ]) }}
{% endmacro %}

{#- The ordered events of the persons that training sees. -#}
{% macro events_of_training() -%}
    select events.*
    from {{ ref('int_events_ordered') }} as events
    inner join {{ ref('int_persons_started') }} as persons
        on events.person_id = persons.person_id
    where persons.split = 'train'
{%- endmacro %}
