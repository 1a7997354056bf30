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

{#-
    Visits or events of histories in the same way, one file per part: the view reads the
    files from then on. Python has written them, but where some are taken over from an
    earlier encode.
-#}
{% macro write_steps(folder) %}
    {{ return(adapter.dispatch('write_steps', 'omop_gpt')(folder)) }}
{% endmacro %}

{% macro default__write_steps(folder) %}{% endmacro %}

{% macro duckdb__write_steps(folder) %}
    {%- if execute and folder %}
        {%- if has_before() %}
            {%- set table_folder = empty_folder(folder) %}
            {%- for row in run_query(
                'select part, min(person_id), max(person_id) from '
                ~ ref('int_persons_started') ~ ' group by part order by part'
            ).rows %}
                {%- do copy_to_part(
                    'select * from ' ~ this ~ ' where person_id between ' ~ row[1]
                    ~ ' and ' ~ row[2] ~ ' order by '
                    ~ model.config.meta.order_by | join(', '),
                    table_folder,
                    row[0]
                ) %}
            {%- endfor %}
        {%- endif %}
        {%- do read_files(folder_of_table(folder)) %}
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
        'copy (' ~ query ~ ") to '" ~ table_folder ~ '/' ~ file_of_part(part)
        ~ ".parquet' (format parquet, compression zstd)"
    ) %}
{% endmacro %}

{#- Make the view that was just built one of the files in its folder. -#}
{% macro read_files(table_folder) %}
    {%- do run_query(view_of_files(table_folder)) %}
{% endmacro %}

{% macro view_of_files(table_folder) %}
    {{- return(
        'create or replace view ' ~ this ~ " as select * from read_parquet('"
        ~ table_folder ~ "/*.parquet', hive_partitioning = false)"
    ) }}
{% endmacro %}

{% macro file_of_part(part) %}
    {{- return('part-' ~ '%02d' | format(part)) }}
{% endmacro %}

{% macro parts_of(relation) %}
    {{- return(
        run_query('select distinct part from ' ~ relation ~ ' order by part')
        .columns[0].values()
    ) }}
{% endmacro %}

{#-
    Write the timeline's tokens to <folder>/tokens/part-*.parquet, one file per part of
    int_persons_checked: each person is whole in one file. Python places, numbers and
    names the tokens and writes the files, and a table of how often training has each:
    see omop_gpt.tokens.
-#}
{% macro write_tokens(folder) %}
    {{ return(adapter.dispatch('write_tokens', 'omop_gpt')(folder)) }}
{% endmacro %}

{% macro default__write_tokens(folder) %}{% endmacro %}

{% macro duckdb__write_tokens(folder) %}
    {%- if execute and folder %}
        {%- set table_folder = empty_folder(folder) %}
        {%- set parts = {} %}
        {%- for part in parts_of(ref('int_persons_started')) %}
            {%- do parts.update({
                file_of_part(part): {
                    'persons': persons_of_part(part),
                    'earlier': earlier_tokens_of_part(part) if has_before(),
                }
            }) %}
        {%- endfor %}
        {%- set of_vocabulary = ' from ' ~ ref('int_vocabulary') ~ ' order by token_id' %}
        {%- set tokens_folder = folder ~ '/' ~ this.identifier %}
        {%- do adapter.store_relation('plugin', this, [], tokens_folder, 'parquet', {
            'do': 'write_tokens',
            'parts': parts,
            'rows': rows_folder(),
            'words': word_queries(),
            'names': {
                'split': "select unnest(['" ~ splits() | join("', '") ~ "']) as name",
                'token': 'select token as name' ~ of_vocabulary,
                'kind': 'select kind as name' ~ of_vocabulary,
            },
            'counts': counts_of_tokens(),
        }) %}
        {%- do read_files(table_folder) %}
    {%- endif %}
{% endmacro %}

{#- The table of how often training has each token; elsewhere a query counts them. -#}
{% macro has_counts_of_tokens() %}
    {{- return(target.type == 'duckdb' and var('timeline_folder') != '') }}
{% endmacro %}

{% macro counts_of_tokens() %}
    {{- return(ref('int_vocabulary').incorporate(
        path={'identifier': 'int_tokens_of_training'}
    ) | string) }}
{% endmacro %}

{#- What Python looks up: the tokens of what steps and persons say. -#}
{% macro word_queries() %}
    {{- return({
        'words':
            'select token_id, kind, coalesce(number, concept_id) as said from '
            ~ ref('int_vocabulary') ~ " where kind <> 'event'",
        'events': tokens_of_events(),
        'spelled': tokens_of_days(),
    }) }}
{% endmacro %}

{#- The persons whose histories these are. -#}
{% macro persons_of_part(part) -%}
    select
        person_id,
        {{ split_order('split') }} as split_order,
        start_year,
        age_years,
        gender_concept_id,
        race_concept_id,
        ethnicity_concept_id,
        death_date
    from {{ ref('int_persons_started') }}
    where part = {{ part }} and {{ is_new('person_id') }}
    order by person_id
{%- endmacro %}

{#- The tokens of the others, which an earlier encode has written. -#}
{% macro earlier_tokens_of_part(part) -%}
    select
        earlier.person_id,
        {{ split_order('earlier.split') }} as split_order,
        earlier.token_id
    from {{ before_file('tokens') }} as earlier
    inner join {{ ref('int_persons_kept') }} as kept
        on earlier.person_id = kept.person_id
    inner join {{ ref('int_persons_started') }} as persons
        on earlier.person_id = persons.person_id
    where persons.part = {{ part }}
    order by earlier.person_id, earlier.position
{%- endmacro %}

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
