{#- What kind of stay a visit concept is: inpatient, emergency, outpatient or other. -#}
{% macro visit_type(visit_concept_id) -%}
    case
        {#- inpatient, from emergency to inpatient, hospital, inpatient hospital -#}
        {{ ' ' }}when {{ visit_concept_id }} in (9201, 262, 8971, 8920) then 'inpatient'
        when {{ visit_concept_id }} = 9203 then 'emergency'
        when {{ visit_concept_id }} = 9202 then 'outpatient'
        else 'other'
    end
{%- endmacro %}
