{#-
    Cast a source's columns as they are declared, and count what cannot be. DuckDB only.
-#}

{#- Is every value of one type a value of the other? Then nothing needs counting. -#}
{% macro is_free(found_type, wanted_type) %}
    {%- set small = [
        'TINYINT', 'SMALLINT', 'INTEGER', 'UTINYINT', 'USMALLINT'
    ] %}
    {%- set whole = small + ['UINTEGER', 'BIGINT'] %}
    {%- set times = [
        'DATE', 'TIMESTAMP', 'TIMESTAMP_S', 'TIMESTAMP_MS', 'TIMESTAMP_NS',
        'TIMESTAMP WITH TIME ZONE'
    ] %}
    {%- if wanted_type in ('date', 'timestamp') %}
        {{- return(found_type in times) }}
    {%- elif wanted_type == 'bigint' %}
        {{- return(found_type in whole) }}
    {%- elif wanted_type == 'int' %}
        {{- return(found_type in small) }}
    {%- elif wanted_type == 'double' %}
        {{- return(
            found_type in whole + ['UBIGINT', 'HUGEINT', 'FLOAT', 'DOUBLE']
            or found_type.startswith('DECIMAL')
        ) }}
    {%- endif %}
    {{- return(true) }}
{% endmacro %}

{#-
    A column as its declared type; NULL if that cannot be. Stricter than try_cast, which
    reads 1.5 as 2, 01-02-20 as a day of the year 1, 1_000 as a number. The usual form
    comes first, because a pattern costs more than a cast.
-#}
{% macro read_as(column, found_type, wanted_type) %}
    {%- set text = column if found_type == 'VARCHAR'
        else 'cast(' ~ column ~ ' as varchar)' %}
    {%- if found_type == 'TIMESTAMP WITH TIME ZONE' %}
        {#- the clock of the machine must not matter -#}
        {{- return(
            'cast(' ~ column ~ " at time zone 'UTC' as " ~ wanted_type ~ ')'
        ) }}
    {%- elif is_free(found_type, wanted_type) %}
        {{- return('cast(' ~ column ~ ' as ' ~ wanted_type ~ ')') }}
    {%- elif wanted_type in ('bigint', 'int') and found_type in ('DOUBLE', 'FLOAT') %}
        {{- return(
            'case when ' ~ column ~ ' = trunc(' ~ column ~ ') then try_cast(' ~ column
            ~ ' as ' ~ wanted_type ~ ') end'
        ) }}
    {%- elif wanted_type in ('bigint', 'int') %}
        {%- set plain = 'try_cast(' ~ text ~ ' as ' ~ wanted_type ~ ')' %}
        {%- set forms = '^\s*"?([+-]?[0-9]+)(\.0*)?"?\s*$' %}
        {{- return(
            'case when ' ~ text ~ ' = cast(' ~ plain ~ ' as varchar) then ' ~ plain
            ~ ' else try_cast(regexp_extract(' ~ text ~ ", '" ~ forms ~ "', 1) as "
            ~ wanted_type ~ ') end'
        ) }}
    {%- elif wanted_type == 'double' %}
        {%- set forms = '^\s*"?([+-]?[0-9]*\.?[0-9]*([eE][+-]?[0-9]{1,2})?)"?\s*$' %}
        {{- return(
            'try_cast(regexp_extract(' ~ text ~ ", '" ~ forms ~ "', 1) as double)"
        ) }}
    {%- else %}
        {%- set form = '____-__-__' if wanted_type == 'date'
            else '____-__-__ __:__:__' %}
        {#- the time zone, if any, is left out: the day is as it is written -#}
        {%- set forms = '^\s*"?([0-9]{4}[-/][0-9]{1,2}[-/][0-9]{1,2}'
            ~ '([ T][0-9]{1,2}:[0-9]{2}(:[0-9]{2}(\.[0-9]*)?)?)?)'
            ~ '( ?(Z|UTC|GMT|[+-][0-9]{2}(:?[0-9]{2})?))?"?\s*$' %}
        {%- set digits = '^\s*"?([0-9]{4})([0-9]{2})([0-9]{2})(\.0*)?"?\s*$' %}
        {{- return(
            'case when ' ~ text ~ " like '" ~ form ~ "' and left(" ~ text
            ~ ", 1) between '0' and '9' then try_cast(" ~ text ~ ' as ' ~ wanted_type
            ~ ') else try_cast(regexp_extract(regexp_replace(' ~ text ~ ", '" ~ digits
            ~ "', '\\1-\\2-\\3'), '" ~ forms ~ "', 1) as " ~ wanted_type ~ ') end'
        ) }}
    {%- endif %}
{% endmacro %}

{% macro casts_table(create) %}
    {{ create }} omop.casts (
        source_table varchar,
        column_name varchar,
        found_type varchar,
        wanted_type varchar,
        row_count bigint,
        value_count bigint,
        uncast_count bigint,
        examples varchar[]
    )
{% endmacro %}

{#-
    Count what cannot be cast, in one scan of the table. Columns that identify somebody
    give no examples. Of CSV every column is counted, so that a line that cannot be
    parsed is met here, before the run.
-#}
{% macro count_casts(table, reader, casts) %}
    {%- if reader.is_csv %}
        {%- do run_query('drop table if exists reject_errors') %}
        {%- do run_query('drop table if exists reject_scans') %}
    {%- endif %}
    {%- set option = ', store_rejects = true' if reader.is_csv else '' %}
    {%- do run_query(cast_counts(table, union_of(reader.calls, option), casts)) %}
    {%- if reader.is_csv %}
        {%- set unread = run_query(
            'select count(distinct (scan_id, file_id, line)), min(line),'
            ~ ' min_by(error_type, line), min_by(file_path, line)'
            ~ ' from reject_errors inner join reject_scans using (scan_id, file_id)'
        ).rows[0] %}
        {%- if unread[0] %}
            {%- do refuse(
                'table ' ~ table ~ ': lines of ' ~ reader.place ~ ' that are no rows: '
                ~ unread[0] ~ ' (' ~ unread[2] | lower ~ ' in line ' ~ unread[1]
                ~ ' of ' ~ unread[3] ~ '): mend them or take them out.'
            ) %}
        {%- endif %}
        {%- do check_quotes(table, reader) %}
    {%- endif %}
{% endmacro %}

{#-
    Refuse files in which a quote is opened and never closed: what follows it would be one
    value, or none, without a word from DuckDB. A lone quote that costs no row is a
    character as any other.
-#}
{% macro check_quotes(table, reader) %}
    {%- for call in reader.calls if "quote = '\"'" in call %}
        {%- set quotes = 'length(line) - length(replace(line, \'"\', \'\'))' %}
        {%- if "escape = '\\'" in call %}
            {%- set quotes = quotes
                ~ " - (length(line) - length(replace(line, '\\\"', ''))) / 2" %}
        {%- endif %}
        {%- set lines = call.split('], ', 1)[0] ~ '], ' ~ line_options()
            ~ ', filename = true)' %}
        {%- set open = run_query(
            'select filename from ' ~ lines
            ~ ' group by 1 having sum(' ~ quotes ~ ') % 2 = 1 order by 1 limit 1'
        ).rows %}
        {%- if open and run_query(
            'select count(*) from ' ~ call ~ ')'
        ).rows[0][0] < run_query(
            'select count(line) - count(distinct filename) from ' ~ lines
        ).rows[0][0] %}
            {%- set line = run_query(
                'select max(place) from (select *, row_number() over () as place from '
                ~ lines ~ " where filename = '"
                ~ dbt.escape_single_quotes(open[0][0]) ~ "') where (" ~ quotes
                ~ ') % 2 = 1'
            ).rows[0][0] %}
            {%- do refuse(
                'table ' ~ table ~ ': a quote in ' ~ open[0][0]
                ~ ' is opened and not closed (look at line ' ~ line
                ~ '), and swallows the rows after it: close it or take it out.'
            ) %}
        {%- endif %}
    {%- endfor %}
{% endmacro %}

{% macro cast_counts(table, given, casts) %}
    insert into omop.casts
    with

    given as (

        {{ given }}

    ),

    read as (

        select
            {%- for cast in casts %}
            {{ cast.value }} as value_{{ loop.index }},
            case
                when value_{{ loop.index }} is null
                then cast({{ cast.given }} as varchar)
            end as left_{{ loop.index }},
            -- asked of what is left alone: it costs more than the cast
            case
                when lower(trim(left_{{ loop.index }}, e' \t\r\n"'))
                not in ('', '\n', 'null', 'na', 'nan')
                then left_{{ loop.index }}
            end as uncast_{{ loop.index }},
            {%- endfor %}
        from given

    ),

    counted as (

        select
            count(*) as row_count,
            {%- for cast in casts %}
            count(value_{{ loop.index }}) as value_count_{{ loop.index }},
            count(uncast_{{ loop.index }}) as uncast_count_{{ loop.index }},
            {%- if cast.identifies %}
            cast([] as varchar[]) as examples_{{ loop.index }},
            {%- else %}
            [
                min(uncast_{{ loop.index }}),
                max(uncast_{{ loop.index }}),
                min_by(uncast_{{ loop.index }}, hash(uncast_{{ loop.index }}))
            ] as examples_{{ loop.index }},
            {%- endif %}
            {%- endfor %}
        from read

    ),

    final as (

        {%- for cast in casts %}
        select
            '{{ table }}' as source_table,
            '{{ cast.column }}' as column_name,
            '{{ dbt.escape_single_quotes(cast.found_type) }}' as found_type,
            '{{ cast.wanted_type }}' as wanted_type,
            row_count,
            value_count_{{ loop.index }} + uncast_count_{{ loop.index }} as value_count,
            uncast_count_{{ loop.index }} as uncast_count,
            list_sort(list_distinct([
                left(regexp_replace(example, '\s+', ' ', 'g'), 40)
                for example in examples_{{ loop.index }}
            ])) as examples
        from counted
        {%- if not loop.last %}
        union all
        {%- endif %}
        {%- endfor %}

    )

    select * from final where uncast_count > 0
{% endmacro %}

{% macro refuse_uncast(max_uncast_share) %}
    {%- set worst = run_query(
        'select source_table, column_name, wanted_type, uncast_count, value_count,'
        ~ " array_to_string(examples, ''', '''), count(*) over () - 1"
        ~ ' from omop.casts where uncast_count > ' ~ max_uncast_share ~ ' * value_count'
        ~ ' order by uncast_count / value_count desc, source_table, column_name limit 1'
    ).rows %}
    {%- for row in worst %}
        {%- do refuse(
            'table ' ~ row[0] ~ ', column ' ~ row[1] ~ ': ' ~ row[3] ~ ' of ' ~ row[4]
            ~ ' values are no ' ~ row[2]
            ~ (" (such as '" ~ row[5] ~ "')" if row[5] else '')
            ~ (', and ' ~ row[6] ~ ' more columns are as bad' if row[6] else '')
            ~ ': mend them, or read them as NULL with a larger --max_uncast_share.'
        ) %}
    {%- endfor %}
{% endmacro %}
