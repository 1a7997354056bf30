{#-
    Copy the table that was just built to <folder>/<table>/part-*.parquet, in its order.
    A table with a column `part` becomes one file per part, without that column.
    The folder must be there; no folder: nothing is written.
-#}
{% macro write_parquet(folder) %}
    {{ return(adapter.dispatch('write_parquet', 'omop_gpt')(folder)) }}
{% endmacro %}

{% macro default__write_parquet(folder) %}{% endmacro %}

{% macro duckdb__write_parquet(folder) %}
    {%- if execute and folder %}
        {%- set columns = adapter.get_columns_in_relation(this) | map(attribute='name') | list %}
        {%- set has_parts = 'part' in columns %}
        {%- set table_folder = dbt.escape_single_quotes(folder) ~ '/' ~ this.identifier %}
        {#- only a copy to a folder makes the folder; it writes part-00, without rows -#}
        {%- do run_query(
            "copy (select * from " ~ this ~ " where false) to '" ~ table_folder
            ~ "' (format parquet, per_thread_output true, overwrite true,"
            ~ " filename_pattern 'part-0')"
        ) %}
        {%- for part in range(16 if has_parts else 1) %}
            {%- do run_query(
                "copy (select * " ~ ("exclude (part) " if has_parts else "")
                ~ "from " ~ this
                ~ (" where part = " ~ part if has_parts else "")
                ~ ") to '" ~ table_folder ~ "/part-" ~ "%02d" | format(part)
                ~ ".parquet' (format parquet, compression zstd)"
            ) %}
        {%- endfor %}
    {%- endif %}
{% endmacro %}
