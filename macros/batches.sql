{#-
    A model that must sort more rows than memory holds is built in batches of parts (of
    int_persons_checked), each by the same query: DuckDB would spill the sort, but not
    beside the joins that feed it. A sort is merged, and its rows are looked back at, in
    one thread, so as many batches as there are threads are built at once. A hook after
    the model sets the batch as variables.
-#}

{#- Whether a part belongs to the batch that is being built; always, where none is. -#}
{% macro is_in_batch(part) -%}
    {%- if target.type == 'duckdb' -%}
        {{ part }} >= coalesce(getvariable('first_part'), 0)
        and {{ part }} <= coalesce(getvariable('last_part'), 255)
    {%- else -%}
        true
    {%- endif -%}
{%- endmacro %}

{#- Before the model: its own query makes an empty table. -#}
{% macro start_batches() %}
    {%- if execute and target.type == 'duckdb' %}
        {%- for statement in batch_of([-1]) %}
            {%- do run_query(statement) %}
        {%- endfor %}
    {%- endif %}
{% endmacro %}

{#- After the model is committed: all batches. -#}
{% macro add_batches() %}
    {%- if execute and target.type == 'duckdb' %}
        {%- set statements = [] %}
        {%- for parts in batches() %}
            {%- do statements.append(
                batch_of(parts) + ['insert into ' ~ this ~ ' ' ~ model.compiled_code]
            ) %}
        {%- endfor %}
        {%- do adapter.store_relation('plugin', this, [], none, 'none', {
            'batches': statements
        }) %}
    {%- endif %}
{% endmacro %}

{% macro batch_of(parts) %}
    {{- return([
        'set variable first_part = ' ~ (parts | first),
        'set variable last_part = ' ~ (parts | last),
    ]) }}
{% endmacro %}

{% macro batches() %}
    {%- set parts = parts_of(ref('int_persons_checked')) %}
    {%- set row_count = run_query(
        'select (select count(*) from ' ~ ref('int_events_checked')
        ~ ') + (select count(*) from ' ~ ref('int_visits_checked') ~ ')'
    ).columns[0].values()[0] | int %}
    {#- small batches in one thread each take longer than one in all of them -#}
    {%- set batch_count = [
        row_count // var('rows_per_batch') + 1, 2 if row_count > 1000000 else 1
    ] | max %}
    {{- return(
        parts | batch((parts | length / batch_count) | round(0, 'ceil') | int or 1) | list
    ) }}
{% endmacro %}
