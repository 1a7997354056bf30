{#-
    Find the source's tables in a folder or a .duckdb file, and how to read each. DuckDB
    only. A reader is {place: for people, is_csv, calls: read_…(…) without the last
    bracket, so that an option can be added}.
-#}
{% macro omop_readers(path) %}
    {%- set folder = path.rstrip('/') %}
    {%- if folder.endswith('.duckdb') %}
        {%- do run_query(
            "attach if not exists '" ~ dbt.escape_single_quotes(folder)
            ~ "' as omop_input (read_only)"
        ) %}
        {%- set tables = run_query(database_tables('omop_input')).rows %}
    {%- else %}
        {%- set tables = run_query(table_files(folder)).rows %}
    {%- endif %}

    {%- set names = omop_names() %}
    {%- set readers = {} %}
    {%- for row in tables if row[0] in names %}
        {%- set name, place, format, content = names[row[0]], row[1], row[2], row[3] %}
        {%- if name in readers %}
            {%- do refuse(
                'table ' ~ name ~ ' is in ' ~ path ~ ' twice, as ' ~ readers[name].place
                ~ ' and as ' ~ place ~ ': keep one of them.'
            ) %}
        {%- endif %}
        {%- if format == 'csv' %}
            {%- set calls = csv_calls(content.split('\n')) %}
        {%- elif format == 'parquet' %}
            {%- set calls = [parquet_call(content.split('\n'))] %}
        {%- else %}
            {%- set calls = ['(from ' ~ content] %}
        {%- endif %}
        {%- if calls %}
            {%- do readers.update({
                name: {'place': place, 'is_csv': format == 'csv', 'calls': calls}
            }) %}
        {%- endif %}
    {%- endfor %}
    {%- if 'person' not in readers %}
        {%- do refuse(
            path ~ ' has no person table: name the folder that holds the OMOP tables.'
        ) %}
    {%- endif %}
    {{- return(readers) }}
{% endmacro %}

{#- The OMOP table that a name stands for, by the name. -#}
{% macro omop_names() %}
    {%- set names = {} %}
    {%- for source in graph.sources.values()
        | selectattr('source_name', 'in', ['omop', 'source_cdm']) %}
        {%- for name in [source.name] + source.config.meta.get('also_named', []) %}
            {%- do names.update({name: source.name}) %}
        {%- endfor %}
    {%- endfor %}
    {{- return(names) }}
{% endmacro %}

{% macro generated_readers() %}
    {%- set folder = var('patient_sequence_folder').rstrip('/') %}
    {%- set files = [] %}
    {%- for row in run_query(table_files(folder)).rows
        if row[0] != 'vocabulary' and row[2] == 'parquet' %}
        {%- do files.extend(row[3].split('\n')) %}
    {%- endfor %}
    {%- if not files %}
        {%- do refuse(folder ~ ' has no sequences: name the folder of their files.') %}
    {%- endif %}
    {%- set vocabulary = dbt.escape_single_quotes(
        var('vocabulary_folder') or folder ~ '/vocabulary'
    ) %}
    {%- set calls = {'sequences': parquet_call(files)} %}
    {%- for name in ('vocabulary', 'value_bins') %}
        {%- set file = "'" ~ vocabulary ~ '/' ~ name ~ ".parquet'" %}
        {%- do calls.update({name: parquet_call([file])}) %}
    {%- endfor %}
    {%- set readers = {} %}
    {%- for name, call in calls.items() %}
        {%- do readers.update({name: {'is_csv': false, 'calls': [call]}}) %}
    {%- endfor %}
    {{- return(readers) }}
{% endmacro %}

{% macro parquet_call(files) %}
    {{- return(
        'read_parquet([' ~ files | join(', ')
        ~ '], union_by_name = true, binary_as_string = true'
    ) }}
{% endmacro %}

{% macro union_of(calls, option='') %}
    {%- set parts = [] %}
    {%- for call in calls %}
        {%- do parts.append('select * from ' ~ call ~ option ~ ')') %}
    {%- endfor %}
    {{- return(parts | join(' union all by name ')) }}
{% endmacro %}

{% macro database_tables(database) %}
    with

    found as (

        select schema_name, table_name
        from duckdb_tables()
        where database_name = '{{ database }}'
        union all
        select schema_name, view_name
        from duckdb_views()
        where database_name = '{{ database }}' and not internal

    )

    select
        lower(table_name) as table_name,
        schema_name || '.' || table_name as place,
        'table' as format,
        '{{ database }}."' || schema_name || '"."' || table_name || '"' as content
    from found
    order by 1, 2
{% endmacro %}

{#-
    The data files of a folder, by table. A table is one file, or a folder of files,
    which may lie in partitions (key=value). Names are quoted for SQL, one on a line.
-#}
{% macro table_files(folder) %}
    {%- set path = dbt.escape_single_quotes(folder) %}
    {%- set pattern = path | replace('[', '[[]') %}
    with

    found as (

        select file, string_split(substr(file, length('{{ path }}') + 2), '/') as parts
        from (
            {%- for depth in range(1, 6) %}
            select file from glob('{{ pattern }}{{ "/*" * depth }}')
            {%- if not loop.last %} union all {%- endif %}
            {%- endfor %}
        )

    ),

    named as (

        select
            lower(regexp_extract(parts[1], '^[^.]+')) as table_name,
            parts[1] || case when length(parts) > 1 then '/' else '' end as place,
            lower(regexp_extract(
                parts[-1], '(?i)\.(parquet|csv|tsv)(\.gz)?$', 1
            )) as extension,
            '''' || replace(file, '''', '''''') || '''' as file
        from found
        where not list_bool_or([part[1] in ('.', '_') for part in parts])

    )

    select
        table_name,
        place,
        case when extension = 'parquet' then 'parquet' else 'csv' end as format,
        string_agg(file, chr(10) order by file) as files
    from named
    where extension != ''
    group by 1, 2, 3
    order by 1, 2, 3
{% endmacro %}

{#-
    How to read CSV files: one call for those that are written alike. Decided for each
    file from its first lines; an empty file is left out.
-#}
{% macro csv_calls(files) %}
    {%- set alike = {} %}
    {%- for file in files %}
        {%- for row in run_query(csv_options(file)).rows if row[0] %}
            {%- do alike.setdefault(row[0], []).append(file) %}
        {%- endfor %}
    {%- endfor %}
    {%- set calls = [] %}
    {%- for options, names in alike.items() %}
        {%- do calls.append('read_csv([' ~ names | join(', ') ~ '], ' ~ options) %}
    {%- endfor %}
    {{- return(calls) }}
{% endmacro %}

{#- The options of read_csv that give a file's lines as they are. -#}
{% macro line_options() -%}
    columns = {'line': 'varchar'}, auto_detect = false, header = false,
    delim = e'\x1e', quote = '', escape = '', new_line = '\n', strict_mode = false,
    ignore_errors = true
{%- endmacro %}

{#-
    One row: the options of read_csv for a file, NULL if it is empty.

    * Delimiter: the commonest of tab, comma, semicolon and pipe in the first line; in
      the second, where the first has blanks between the names.
    * Quotes: always, but in tab-separated files (Athena's have none, and names with a
      lone ") only where the names are quoted, or quotes are closed and doubled.
    * Rows may be shorter than the first line, or longer by what is in the sample, which
      lands in `beyond_…` and is counted.
    * A line that cannot be parsed is left out here and stops the run in count_casts().
-#}
{% macro csv_options(file) %}
    with

    lines as (

        select line, row_number() over () as line_number
        from (
            select *
            from read_csv({{ file }}, {{ line_options() }})
            limit 20000
        )

    ),

    first_lines as (

        select
            min_by(line, line_number) as header,
            arg_min(line, line_number, 2)[-1] as next_line,
            -- \r\n reads as an empty line more: after each line, or after some of them
            count(*) > count(line) and abs(count(*) - 2 * count(line)) > 1 as is_mixed
        from lines

    ),

    delimited as (

        select
            header,
            is_mixed,
            delimiter,
            case
                when contains(header, delimiter) then string_split(header, delimiter)
                else string_split_regex(trim(header), '\s+')
            end as names
        from first_lines
        cross join (
            values (e'\t', 1), (',', 2), (';', 3), ('|', 4)
        ) as delimiters (delimiter, rank)
        where header is not null
        order by
            length(string_split(header, delimiter)) desc,
            length(string_split(next_line, delimiter)) desc,
            rank
        limit 1

    ),

    measured as (

        select
            any_value(names) as names,
            any_value(delimiter) as delimiter,
            any_value(is_mixed) as is_mixed,
            max(length(string_split(line, delimiter))) as field_count,
            any_value(delimiter) != e'\t'
            or any_value(starts_with(ltrim(header, chr(65279)), '"'))
            or (
                bool_or(regexp_matches(
                    line, '(^|\t)"([^"\t]|"")*""([^"\t]|"")*"(\t|$)'
                ))
                and not bool_or(regexp_matches(
                    line, '(^|\t)"([^"\t]|"")*("[^"\t]|\t|$)'
                ))
            ) as is_quoted,
            -- \" in the middle of a value
            bool_or(regexp_matches(line, '[^"]\\"[^\t,;|"]')) as is_escaped
        from lines
        cross join delimited

    ),

    trimmed as (

        select
            *,
            [trim(name, e' \t\r"' || chr(65279)) for name in names] as clean
        from measured

    ),

    named as (

        select
            *,
            [
                case
                    when name = '' or list_position(clean, name) < place
                    then 'column_' || place else name
                end
                for name, place in clean
            ] || [
                'beyond_' || place
                for place in range(1, greatest(field_count - length(names), 0) + 2)
            ] as columns
        from trimmed

    )

    select
        'columns = {' || array_to_string([
            '''' || replace(name, '''', '''''') || ''': ''varchar''' for name in columns
        ], ', ') || '}, auto_detect = false, header = true, null_padding = true'
        || ', ignore_errors = true, delim = ''' || delimiter || ''''
        || ', strict_mode = ' || (is_quoted and not is_mixed)
        || case
            when not is_quoted then ', quote = '''', escape = '''''
            when is_escaped then ', parallel = false, quote = ''"'', escape = ''\'''
            else ', parallel = false, quote = ''"'', escape = ''"'''
        end as options
    from named
{% endmacro %}
