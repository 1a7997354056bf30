{#-
    Copy the table or view that was just built to <folder>/<table>/part-*.parquet, in the
    order of config `meta: {order_by: [...]}`, else in its own. With a column `part` it
    becomes one file per part of int_persons_started, without that column. The folder must
    be there; no folder: nothing is written.
-#}
{% macro write_parquet(folder) %}
    {{ return(adapter.dispatch('write_parquet', 'omop_gpt')(folder)) }}
{% endmacro %}

{% macro default__write_parquet(folder) %}{% endmacro %}

{% macro duckdb__write_parquet(folder) %}
    {%- if execute and folder %}
        {%- set order_by = model.config.get('meta', {}).get('order_by', []) | join(', ') %}
        {%- set order_by = ' order by ' ~ order_by if order_by else '' %}
        {%- set table_folder = empty_folder(folder) %}
        {%- if has_parts() %}
            {%- for part in parts_of(ref('int_persons_started')) %}
                {%- do copy_to_part(
                    'select * exclude (part) from ' ~ this ~ ' where part = ' ~ part
                    ~ order_by,
                    table_folder,
                    part
                ) %}
            {%- endfor %}
        {%- else %}
            {%- do copy_to_part('select * from ' ~ this ~ order_by, table_folder) %}
        {%- endif %}
    {%- endif %}
{% endmacro %}

{% macro has_parts() %}
    {%- set columns = adapter.get_columns_in_relation(this) | map(attribute='name') | list %}
    {{- return('part' in columns) }}
{% endmacro %}

{% macro parts_of(relation) %}
    {{- return(
        run_query('select distinct part from ' ~ relation ~ ' order by part')
        .columns[0].values()
    ) }}
{% endmacro %}

{#-
    Copy the timeline's tokens to <folder>/tokens/part-*.parquet, one file per part, in
    the order that int_tokens_placed lies in. Names of tokens come from variables: a join
    would lose the order, and sorting again costs twice as much as writing.
-#}
{% macro write_tokens(folder) %}
    {{ return(adapter.dispatch('write_tokens', 'omop_gpt')(folder)) }}
{% endmacro %}

{% macro default__write_tokens(folder) %}{% endmacro %}

{% macro duckdb__write_tokens(folder) %}
    {%- if execute and folder %}
        {%- for column in ['token', 'kind'] %}
            {%- do run_query(
                'set variable ' ~ column ~ '_of = (select list(' ~ column
                ~ ' order by token_id) from ' ~ ref('int_vocabulary') ~ ')'
            ) %}
        {%- endfor %}
        {%- set table_folder = empty_folder(folder) %}
        {%- for part in parts_of(ref('int_tokens_placed')) %}
            {%- set runs %}
                select person_id, split, first_position, {{ run_tokens() }} as token_ids
                from {{ ref('int_tokens_placed') }}
                where part = {{ part }}
            {%- endset %}
            {%- do copy_to_part(
                'select person_id, split,'
                ~ ' cast(first_position + position - 1 as int) as position, token_id,'
                ~ " getvariable('token_of')[token_id + 1] as token,"
                ~ " getvariable('kind_of')[token_id + 1] as kind from ("
                ~ unnest_tokens(
                    '(' ~ runs ~ ')', ['person_id', 'split', 'first_position'], 'token_ids'
                ) ~ ')',
                table_folder,
                part
            ) %}
        {%- endfor %}
    {%- endif %}
{% endmacro %}

{#- Make the folder of the table that was just built, with an empty part-00, and name it. -#}
{% macro empty_folder(folder) %}
    {%- set table_folder = dbt.escape_single_quotes(folder) ~ '/' ~ this.identifier %}
    {%- do run_query(
        'copy (select * '
        ~ ('exclude (part) ' if has_parts() else '')
        ~ 'from ' ~ this ~ " where false) to '" ~ table_folder
        ~ "' (format parquet, per_thread_output true, overwrite true,"
        ~ " filename_pattern 'part-0')"
    ) %}
    {{- return(table_folder) }}
{% endmacro %}

{% macro copy_to_part(query, table_folder, part=0) %}
    {%- do run_query(
        'copy (' ~ query ~ ") to '" ~ table_folder ~ '/part-' ~ '%02d' | format(part)
        ~ ".parquet' (format parquet, compression zstd)"
    ) %}
{% endmacro %}
