{#- The columns of a table of the synthetic CDM, by name. -#}
{% macro cdm_columns(table) %}
    {{- return(graph.nodes['model.omop_gpt.' ~ cdm_model(table)].columns) }}
{% endmacro %}

{#- The model that makes a table of the synthetic CDM. -#}
{% macro cdm_model(table) %}
    {{- return('omop_vocabulary' if table == 'vocabulary' else table) }}
{% endmacro %}

{#- All columns of the model that is built, cast as it declares them; or NULL each. -#}
{% macro declared_columns(are_null=false) -%}
    {%- for column in model.columns.values() %}
    cast({{ 'null' if are_null else column.name }} as {{ column.data_type }})
        as {{ column.name }}{{ ',' if not loop.last }}
    {%- endfor %}
{%- endmacro %}
