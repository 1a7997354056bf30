{#-
    Count the rows of each concept in each concept column of the synthetic CDM's tables,
    or of the tables of the same names in `source_name`. DuckDB and Spark.
-#}
{% macro concept_counts(tables, source_name=none) -%}
    {%- set parts = [] %}
    {%- for table in tables %}
        {%- set relation = source(source_name, table) if source_name else ref(cdm_model(table)) %}
        {%- set columns = cdm_columns(table) if execute else {} %}
        {%- for column in columns if column.endswith('concept_id') %}
            {%- do parts.append(
                "select '" ~ table ~ "' as cdm_table, '" ~ column ~ "' as cdm_field, "
                ~ 'cast(' ~ column ~ ' as bigint) as concept_id, '
                ~ 'count(*) as row_count '
                ~ 'from ' ~ relation ~ ' where ' ~ column ~ ' is not null group by 3'
            ) %}
        {%- endfor %}
    {%- endfor %}
    {{- parts | join('\n    union all\n    ') }}
{%- endmacro %}
