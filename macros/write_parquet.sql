{#-
    Copy the view or table that was just built to <folder>/<table>/part-*.parquet, in the
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

{#- The same, and let the view read the files from then on: its rows are kept once. -#}
{% macro keep_in_files(folder) %}
    {%- do write_parquet(folder) %}
    {%- if execute and folder and target.type == 'duckdb' %}
        {%- do read_files(folder_of_table(folder)) %}
    {%- endif %}
{% endmacro %}

{#-
    Copy steps of histories in the same way, one file per part, and let the view read the
    files from then on: its rows are kept once, and not for the length of the run alone.
    Within a part they lie in order, unless some are taken over from an earlier encode.
-#}
{% macro write_steps(folder) %}
    {{ return(adapter.dispatch('write_steps', 'omop_gpt')(folder)) }}
{% endmacro %}

{% macro default__write_steps(folder) %}{% endmacro %}

{% macro duckdb__write_steps(folder) %}
    {%- if execute and folder %}
        {%- set order_by = ' order by ' ~ model.config.meta.order_by | join(', ') %}
        {%- set table_folder = empty_folder(folder) %}
        {%- for row in run_query(
            'select part, min(person_id), max(person_id) from '
            ~ ref('int_persons_started') ~ ' group by part order by part'
        ).rows %}
            {%- do copy_to_part(
                'select * from ' ~ this ~ ' where person_id between ' ~ row[1] ~ ' and '
                ~ row[2] ~ (order_by if has_before()),
                table_folder,
                row[0]
            ) %}
        {%- endfor %}
        {%- do read_files(table_folder) %}
    {%- endif %}
{% endmacro %}

{#- A table with a contract has the columns that it declares: dbt need not look. -#}
{% macro has_parts() %}
    {%- if model.config.contract.enforced %}
        {{- return('part' in model.columns) }}
    {%- endif %}
    {%- set columns = adapter.get_columns_in_relation(this) | map(attribute='name') | list %}
    {{- return('part' in columns) }}
{% endmacro %}

{% macro copy_to_part(query, table_folder, part=0) %}
    {%- do run_query(
        'copy (' ~ query ~ ") to '" ~ table_folder ~ '/part-' ~ '%02d' | format(part)
        ~ ".parquet' (format parquet, compression zstd)"
    ) %}
{% endmacro %}

{#- Make the view that was just built one of the files in its folder. -#}
{% macro read_files(table_folder) %}
    {%- do run_query(
        'create or replace view ' ~ this ~ " as select * from read_parquet('"
        ~ table_folder ~ "/*.parquet')"
    ) %}
{% endmacro %}

{% macro parts_of(relation) %}
    {{- return(
        run_query('select distinct part from ' ~ relation ~ ' order by part')
        .columns[0].values()
    ) }}
{% endmacro %}

{#-
    Write the timeline's tokens to <folder>/tokens/part-*.parquet, one file per part of
    int_persons_checked: each person is whole in one file. Python numbers and names the
    tokens and writes the files: see omop_gpt.plugin.
-#}
{% macro write_tokens(folder) %}
    {{ return(adapter.dispatch('write_tokens', 'omop_gpt')(folder)) }}
{% endmacro %}

{% macro default__write_tokens(folder) %}{% endmacro %}

{% macro duckdb__write_tokens(folder) %}
    {%- if execute and folder %}
        {%- set table_folder = empty_folder(folder) %}
        {%- set queries = {} %}
        {%- for part in parts_of(ref('int_persons_started')) %}
            {%- do queries.update({
                'part-' ~ '%02d' | format(part): tokens_of_part(part)
            }) %}
        {%- endfor %}
        {%- set of_vocabulary = ' from ' ~ ref('int_vocabulary') ~ ' order by token_id' %}
        {%- do adapter.store_relation('plugin', this, [], table_folder, 'parquet', {
            'queries': queries,
            'names': {
                'split': "select unnest(['" ~ splits() | join("', '") ~ "']) as name",
                'token': 'select token as name' ~ of_vocabulary,
                'kind': 'select kind as name' ~ of_vocabulary,
            },
        }) %}
        {%- do read_files(table_folder) %}
    {%- endif %}
{% endmacro %}

{#- The tokens of a part: what is filled of the places of its steps. -#}
{% macro tokens_of_part(part) %}
    select person_id, place, split_order, token_id
    from (
        select
            person_id,
            split_order,
            32 * step_order + unnest(range({{ run_places() | length }})) as place,
            unnest([{{ run_places() | join(', ') }}]) as token_id
        from (
            select *, {{ split_order('split') }} as split_order
            from {{ ref('int_tokens_placed') }}
            where part = {{ part }}
        )
    )
    where token_id is not null
    {%- if has_before() %}
    union all
    select
        earlier.person_id,
        earlier.position as place,
        {{ split_order('earlier.split') }} as split_order,
        earlier.token_id
    from {{ before_file('tokens') }} as earlier
    inner join {{ ref('int_persons_kept') }} as kept
        on earlier.person_id = kept.person_id
    inner join {{ ref('int_persons_started') }} as persons
        on earlier.person_id = persons.person_id
    where persons.part = {{ part }}
    {%- endif %}
{% endmacro %}

{#- The place of a split among splits(). -#}
{% macro split_order(split) -%}
    cast(case {{ split }}
        {%- for name in splits() %} when '{{ name }}' then {{ loop.index0 }}{% endfor %}
    end as tinyint)
{%- endmacro %}

{% macro splits() %}
    {{- return(['train', 'validation', 'holdout', 'reserve']) }}
{% endmacro %}

{% macro folder_of_table(folder) %}
    {{- return(dbt.escape_single_quotes(folder) ~ '/' ~ this.identifier) }}
{% endmacro %}

{#- Make the folder of the table that was just built, with an empty part-00, and name it. -#}
{% macro empty_folder(folder) %}
    {%- set table_folder = folder_of_table(folder) %}
    {%- do run_query(
        'copy (select * '
        ~ ('exclude (part) ' if has_parts() else '')
        ~ 'from ' ~ this ~ " where false) to '" ~ table_folder
        ~ "' (format parquet, per_thread_output true, overwrite true,"
        ~ " filename_pattern 'part-0')"
    ) %}
    {{- return(table_folder) }}
{% endmacro %}
