{#-
    Find the source's tables on Spark, in a folder of Parquet (var input_folder) or in a
    schema of the warehouse (var input_schema): {table: what to select from}. A table in
    another kind of file stops the run, so that none is passed over.
-#}
{% macro spark_source_tables() %}
    {%- set folder = var('input_folder').rstrip('/') %}
    {%- set place = folder or 'schema ' ~ var('input_schema') %}
    {%- set found = [] %}
    {%- if folder %}
        {%- for row in run_query(spark_table_files(folder)).rows %}
            {%- do found.append(
                [row[0], row[2], 'parquet.`' ~ folder ~ '/' ~ row[1] ~ '`', row[1]]
            ) %}
        {%- endfor %}
    {%- else %}
        {%- for row in run_query('show tables in ' ~ var('input_schema')).rows %}
            {%- do found.append(
                [row[1] | lower, 'parquet', var('input_schema') ~ '.' ~ row[1], row[1]]
            ) %}
        {%- endfor %}
    {%- endif %}

    {%- set names = omop_names() %}
    {%- set tables = {} %}
    {%- for name, format, relation, shown in found if name in names %}
        {%- if format != 'parquet' %}
            {%- do refuse(
                'table ' ~ name ~ ' (' ~ place ~ '/' ~ shown ~ ') is ' ~ format
                ~ ': Spark reads Parquet alone; write it so, or encode with DuckDB.'
            ) %}
        {%- elif names[name] in tables %}
            {%- do refuse(
                'table ' ~ name ~ ' is in ' ~ place ~ ' twice: keep one of them.'
            ) %}
        {%- endif %}
        {%- do tables.update({names[name]: relation}) %}
    {%- endfor %}
    {%- if 'person' not in tables %}
        {%- do refuse(
            place ~ ' has no person table: name where the OMOP tables are.'
        ) %}
    {%- endif %}
    {{- return(tables) }}
{% endmacro %}

{#- The files of a folder, as Spark lists them: table, its file or folder, its format. -#}
{% macro spark_table_files(folder) %}
    {%- if not (folder.startswith('/') or ':/' in folder) %}
        {%- do refuse('input_folder ' ~ folder ~ ': Spark needs the whole path.') %}
    {%- endif %}
    {%- set path = dbt.escape_single_quotes(folder) ~ '/' %}
    {%- do run_query(
        'create or replace temporary view omop_files using binaryFile options ('
        ~ "path '" ~ path ~ "', recursiveFileLookup 'true')"
    ) %}
    with

    found as (

        select substr(path, locate('{{ path }}', path) + length('{{ path }}')) as file
        from omop_files

    ),

    named as (

        select
            substring_index(file, '/', 1) as place,
            lower(regexp_extract(file, '(?i)[.](parquet|csv|tsv)([.]gz)?$', 1)) as format
        from found

    )

    select distinct
        lower(substring_index(place, '.', 1)) as table_name,
        place,
        format
    from named
    where format <> ''
    order by 1, 2, 3
{% endmacro %}

{% macro create_spark_view_of(source, relation) %}
    {%- set found = {} %}
    {%- if relation %}
        {%- for row in run_query('describe query select * from ' ~ relation).rows %}
            {%- do found.update({row[0] | lower: {
                'name': '`' ~ row[0] ~ '`', 'type': row[1]
            }}) %}
        {%- endfor %}
    {%- endif %}
    {%- do say_absent(source, found if relation else none) %}

    {%- set columns = [] %}
    {%- set casts = [] %}
    {%- for column in source.columns.values() %}
        {%- set given = found.get(column.name) %}
        {%- if given %}
            {%- set value = read_on_spark(given.name, given.type, column.data_type) %}
            {%- if value != given.name %}
                {%- do casts.append({
                    'column': column.name, 'wanted_type': column.data_type,
                    'count': 'count(' ~ said_on_spark(given.name) ~ ') - count(' ~ value
                    ~ ')'
                }) %}
            {%- endif %}
        {%- else %}
            {%- set value = 'cast(null as ' ~ column.data_type ~ ')' %}
        {%- endif %}
        {%- do columns.append(value ~ ' as ' ~ column.name) %}
    {%- endfor %}
    {%- if casts %}
        {%- set counts = run_query(
            'select ' ~ casts | map(attribute='count') | join(', ') ~ ' from ' ~ relation
        ).rows[0] %}
        {%- for cast, count in zip(casts, counts) if count %}
            {%- do refuse(
                'table ' ~ source.name ~ ', column ' ~ cast.column ~ ': '
                ~ count ~ ' values are no ' ~ cast.wanted_type
                ~ ': mend them, or encode with DuckDB, which counts them.'
            ) %}
        {%- endfor %}
    {%- endif %}
    {%- do run_query(
        'create or replace view ' ~ source.schema ~ '.' ~ source.identifier
        ~ ' as select ' ~ columns | join(', ')
        ~ (' from ' ~ relation if relation else ' where false')
    ) %}
{% endmacro %}

{#- A column as its declared type; the column itself where no value can be lost. -#}
{% macro read_on_spark(column, found_type, wanted_type) %}
    {%- set whole = ['tinyint', 'smallint', 'int', 'bigint'] %}
    {%- if found_type == wanted_type
        or found_type in whole[:3] and wanted_type == 'bigint' %}
        {{- return(column) }}
    {%- elif wanted_type in whole and (
        found_type in ['float', 'double'] or found_type.startswith('decimal')
    ) %}
        {{- return(
            'case when ' ~ column ~ ' = floor(' ~ column ~ ') then try_cast(' ~ column
            ~ ' as ' ~ wanted_type ~ ') end'
        ) }}
    {%- elif found_type == 'string' %}
        {{- return('try_cast(' ~ said_on_spark(column) ~ ' as ' ~ wanted_type ~ ')') }}
    {%- endif %}
    {{- return('try_cast(' ~ column ~ ' as ' ~ wanted_type ~ ')') }}
{% endmacro %}

{#- What a column says, as text: what DuckDB reads as nothing is nothing. -#}
{% macro said_on_spark(column) %}
    {%- set text = 'trim(cast(' ~ column ~ ' as string))' %}
    {{- return(
        'case when lower(' ~ text ~ ") not in ('', 'null', 'na', 'nan') then " ~ text
        ~ ' end'
    ) }}
{% endmacro %}
