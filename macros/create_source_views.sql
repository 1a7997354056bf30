{#-
    Make what the models read visible in the warehouse, before the run:

    * schema `omop`: a view of each table of source `omop`, over var('input_folder');
    * schema `generated`: sequences and vocabulary, over var('patient_sequence_folder');
    * schema `source_cdm`: the source's tables with all columns of the synthetic ones, over
      var('source_omop_folder').

    Each view has the declared columns and types, so that an absent table or column is
    NULL and never an error. DuckDB counts in `omop.casts` what cannot be cast; Spark
    stops there, and reads no CSV: see source_tables_spark.sql. Elsewhere the tables are
    expected to be there.
-#}
{% macro create_source_views() %}
    {{ return(adapter.dispatch('create_source_views', 'omop_gpt')()) }}
{% endmacro %}

{% macro default__create_source_views() %}{% endmacro %}

{% macro duckdb__create_source_views() %}
    {%- if execute %}
        {%- do run_query('create schema if not exists omop') %}
        {%- if var('input_folder') %}
            {%- do run_query(casts_table('create or replace table')) %}
            {%- do create_views_of(sources_of('omop'), omop_readers(var('input_folder'))) %}
            {%- do refuse_uncast(var('max_uncast_share', 0.01) | float) %}
        {%- else %}
            {%- do run_query(casts_table('create table if not exists')) %}
        {%- endif %}
        {%- if var('patient_sequence_folder') %}
            {%- do create_views_of(sources_of('generated'), generated_readers()) %}
            {%- do create_cdm_views(
                omop_readers(var('source_omop_folder'))
                if var('source_omop_folder', '') else {}
            ) %}
        {%- endif %}
    {%- endif %}
{% endmacro %}

{#-
    The source's tables as a whole: a model of marts/omop says the columns of each. Nothing
    is counted or said of them: encode has done that for what it reads.
-#}
{% macro create_cdm_views(readers) %}
    {%- set sources = [] %}
    {%- for source in sources_of('source_cdm') %}
        {%- do sources.append({
            'source_name': source.source_name,
            'name': source.name,
            'schema': source.schema,
            'identifier': source.identifier,
            'columns': cdm_columns(source.name),
        }) %}
    {%- endfor %}
    {%- do create_views_of(sources, readers) %}
{% endmacro %}

{% macro spark__create_source_views() %}
    {%- if execute and (var('input_folder') or var('input_schema', '')) %}
        {%- do run_query('create schema if not exists omop') %}
        {%- set tables = spark_source_tables() %}
        {%- for source in sources_of('omop') %}
            {%- do create_spark_view_of(source, tables.get(source.name)) %}
        {%- endfor %}
    {%- endif %}
{% endmacro %}

{% macro sources_of(source_name) %}
    {{- return(
        graph.sources.values() | selectattr('source_name', 'equalto', source_name) | list
    ) }}
{% endmacro %}

{#-
    `readers`: how each table is read, by its name; see source_tables.sql. One query asks
    for all columns, and one makes all views.
-#}
{% macro create_views_of(sources, readers) %}
    {%- set found = columns_of(sources, readers) %}
    {%- set statements = [] %}
    {%- for source in sources %}
        {%- if loop.first %}
            {%- do statements.append('create schema if not exists ' ~ source.schema) %}
        {%- endif %}
        {%- do statements.append(
            view_of(source, readers.get(source.name), found.get(source.name, {}))
        ) %}
    {%- endfor %}
    {%- do run_query(statements | join('; ')) %}
{% endmacro %}

{#- Name and type of the columns of each table that has a reader, by their plain names. -#}
{% macro columns_of(sources, readers) %}
    {%- set queries = [] %}
    {%- for source in sources if source.name in readers %}
        {%- do queries.append(
            "select '" ~ source.name ~ "' as table_name, column_name, column_type"
            ~ ' from (describe ' ~ union_of(readers[source.name].calls) ~ ')'
        ) %}
    {%- endfor %}
    {%- set found = {} %}
    {%- for row in run_query(queries | join(' union all ')).rows if queries %}
        {%- do found.setdefault(row[0], {}).update({row[1] | lower | trim: {
            'name': adapter.quote(row[1]), 'type': row[2]
        }}) %}
    {%- endfor %}
    {{- return(found) }}
{% endmacro %}

{#- Say how the view of a table is made; count what of it cannot be cast. -#}
{% macro view_of(source, reader, found) %}
    {%- if reader %}
        {%- set key = 'person_id' if 'person_id' in source.columns
            else source.columns | first %}
        {%- if source.source_name == 'omop' and key not in found %}
            {%- do refuse(
                'table ' ~ source.name ~ ' has no column ' ~ key ~ ' (' ~ reader.place
                ~ '): its first line must name the columns.'
            ) %}
        {%- endif %}
    {%- endif %}

    {%- set columns = [] %}
    {%- set casts = [] %}
    {%- for column in source.columns.values() %}
        {%- set given = found.get(column.name) %}
        {%- if given %}
            {%- set value = read_as(given.name, given.type, column.data_type) %}
            {%- if reader.is_csv or not is_free(given.type, column.data_type) %}
                {%- do casts.append({
                    'column': column.name, 'given': given.name, 'value': value,
                    'found_type': given.type, 'wanted_type': column.data_type,
                    'identifies': column.name.endswith('_id')
                    and not column.name.endswith('concept_id')
                }) %}
            {%- endif %}
        {%- else %}
            {%- set value = 'cast(null as ' ~ column.data_type ~ ')' %}
        {%- endif %}
        {%- do columns.append(value ~ ' as ' ~ column.name) %}
    {%- endfor %}
    {%- if source.source_name == 'omop' %}
        {%- do say_absent(source, found if reader else none) %}
    {%- endif %}
    {%- if reader and reader.is_csv %}
        {%- set beyond = [] %}
        {%- for name, given in found.items() if name.startswith('beyond_') %}
            {%- do beyond.append(given.name) %}
        {%- endfor %}
        {%- do casts.append({
            'column': 'beyond the names', 'value': 'cast(null as varchar)',
            'given': 'coalesce(' ~ beyond | join(', ') ~ ')',
            'found_type': 'VARCHAR', 'wanted_type': 'column', 'identifies': true
        }) %}
    {%- endif %}
    {%- if source.source_name == 'omop' and casts %}
        {%- do count_casts(source.name, reader, casts) %}
    {%- endif %}
    {{- return(
        'create or replace view ' ~ source.schema ~ '.' ~ source.identifier
        ~ ' as select ' ~ columns | join(', ')
        ~ (' from (' ~ union_of(reader.calls) ~ ')' if reader else ' where false')
    ) }}
{% endmacro %}

{#- Say which columns of a table are not among those `found`; none: there is no table. -#}
{% macro say_absent(source, found) %}
    {#- by the newer name, where a column has two -#}
    {%- set present = [] %}
    {%- set absent = [] %}
    {%- for column in source.columns.values() %}
        {%- do (present if column.name in (found or {}) else absent).append(
            column.config.meta.get('now', column.name)
        ) %}
    {%- endfor %}
    {%- set absent = absent | reject('in', present) | unique | list %}
    {%- if found is none %}
        {%- do log('no table ' ~ source.name ~ ': going on without it', info=true) %}
    {%- elif absent %}
        {%- do log(
            'table ' ~ source.name ~ ' has no ' ~ absent | join(', ') ~ ': NULL', info=true
        ) %}
    {%- endif %}
{% endmacro %}

{#- Stop with one line: `build` shows it as it is, without the trace. -#}
{% macro refuse(message) %}
    {%- do exceptions.raise_compiler_error('cannot read: ' ~ message) %}
{% endmacro %}
