{#-
    Rows on the way are in database `scratch` on DuckDB, which profiles.yml attaches;
    elsewhere all is in one place.
-#}
{% macro generate_database_name(custom_database_name, node) %}
    {%- if target.type == 'duckdb' %}
        {{- return((custom_database_name or target.database) | trim) }}
    {%- endif %}
    {{- return(none) }}
{% endmacro %}
