{#-
    Make what the models read visible in the warehouse, before the run:

    * schema `omop`: a view of each table of source `omop`, over var('input_folder');
    * schema `generated`: sequences and their vocabulary, over var('patient_sequence_folder').

    Each view starts from an empty row of the declared columns and types, so that an
    absent table or column is NULL and never an error. On other warehouses than DuckDB
    the tables are expected to be there.
-#}
{% macro create_source_views() %}
    {{ return(adapter.dispatch('create_source_views', 'omop_gpt')()) }}
{% endmacro %}

{% macro default__create_source_views() %}{% endmacro %}

{% macro duckdb__create_source_views() %}
    {%- if execute %}
        {%- if var('input_folder') %}
            {%- do create_views_of('omop', var('input_folder')) %}
        {%- endif %}
        {%- if var('patient_sequence_folder') %}
            {%- do create_views_of('generated', var('patient_sequence_folder')) %}
        {%- endif %}
    {%- endif %}
{% endmacro %}

{% macro create_views_of(source_name, path) %}
    {%- set readers = {} %}
    {%- set folder = dbt.escape_single_quotes(path.rstrip('/')) %}
    {%- if folder.endswith('.duckdb') %}
        {%- do run_query(
            "attach if not exists '" ~ folder ~ "' as " ~ source_name ~ "_input (read_only)"
        ) %}
        {%- set tables = run_query(
            "select lower(table_name), schema_name || '.' || table_name from duckdb_tables()"
            ~ " where database_name = '" ~ source_name ~ "_input'"
        ) %}
        {%- for row in tables.rows %}
            {%- do readers.update({row[0]: source_name ~ '_input.' ~ row[1]}) %}
        {%- endfor %}
    {%- else %}
        {%- for row in run_query(source_files(source_name, folder)).rows %}
            {%- set files = '[' ~ row[2] ~ ']' %}
            {%- if row[1] == 'parquet' %}
                {%- set reader = 'read_parquet(' ~ files ~ ', union_by_name = true)' %}
            {%- else %}
                {%- set reader = 'read_csv(' ~ files
                    ~ ', all_varchar = true, header = true, union_by_name = true)' %}
            {%- endif %}
            {%- do readers.update({row[0]: reader}) %}
        {%- endfor %}
        {%- if source_name == 'generated' and var('vocabulary_folder') %}
            {%- set vocabulary = dbt.escape_single_quotes(var('vocabulary_folder')) %}
            {%- do readers.update({
                'vocabulary': "read_parquet('" ~ vocabulary ~ "/vocabulary.parquet')",
                'value_bins': "read_parquet('" ~ vocabulary ~ "/value_bins.parquet')"
            }) %}
        {%- endif %}
    {%- endif %}

    {%- set needed = 'person' if source_name == 'omop' else 'sequences' %}
    {%- if needed not in readers %}
        {%- do exceptions.raise_compiler_error(
            path ~ ' has no ' ~ needed ~ ': name the folder that holds its files.'
        ) %}
    {%- endif %}

    {%- for source in graph.sources.values()
        | selectattr('source_name', 'equalto', source_name) %}
        {%- set columns = [] %}
        {%- for column in source.columns.values() %}
            {%- do columns.append(
                'cast(null as ' ~ column.data_type ~ ') as ' ~ column.name
            ) %}
        {%- endfor %}
        {%- if loop.first %}
            {%- do run_query('create schema if not exists ' ~ source.schema) %}
        {%- endif %}
        {%- do run_query(
            'create or replace view ' ~ source.schema ~ '.' ~ source.identifier ~ ' as'
            ~ ' select ' ~ columns | join(', ') ~ ' where false'
            ~ (
                ' union all by name select * from ' ~ readers[source.name]
                if source.name in readers else ''
            )
        ) %}
    {%- endfor %}
{% endmacro %}

{#-
    The data files of a folder: table, format, quoted paths. A table is a folder of files
    or one file.
-#}
{% macro source_files(source_name, folder) %}
    {%- set pattern = folder | replace('[', '[[]') %}
    with

    found as (

        select
            file,
            string_split(substr(file, length('{{ folder }}') + 2), '/') as parts
        from (
            select file from glob('{{ pattern }}/*')
            union all
            select file from glob('{{ pattern }}/*/*')
        )

    ),

    named as (

        select
            file,
            lower(regexp_extract(parts[-1], '\.([a-zA-Z]+)$', 1)) as extension,
            {% if source_name == 'generated' -%}
            case when parts[1] = 'vocabulary' then 'vocabulary' else 'sequences' end
            {%- else -%}
            lower(regexp_extract(parts[1], '^[^.]+'))
            {%- endif %} as table_name
        from found
        where not starts_with(parts[-1], '.') and not starts_with(parts[-1], '_')

    )

    select
        table_name,
        case when extension = 'parquet' then 'parquet' else 'csv' end as format,
        string_agg(
            '''' || replace(file, '''', '''''') || '''', ', ' order by file
        ) as files
    from named
    where extension in ('parquet', 'csv', 'tsv')
    group by 1, 2
    order by 1, 2
{% endmacro %}
