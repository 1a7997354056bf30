{#-
    A model that must sort more rows than memory holds is built in batches of parts (of
    int_persons_started), each by the same query: DuckDB would spill the sort, but not
    beside the joins that feed it. Hooks of the model set the batch as variables.
-#}

{#- Whether a person belongs to the batch that is being built; always, where none is. -#}
{% macro is_in_batch(person_id) -%}
    {%- if target.type == 'duckdb' -%}
        {{ person_id }} in (
            select batch_persons.person_id
            from {{ ref('int_persons_started') }} as batch_persons
            where
                batch_persons.part >= coalesce(getvariable('first_part'), 0)
                and batch_persons.part <= coalesce(getvariable('last_part'), 255)
        )
    {%- else -%}
        true
    {%- endif -%}
{%- endmacro %}

{#- Before the model: its own query builds the first batch. -#}
{% macro start_batches() %}
    {%- if execute and target.type == 'duckdb' %}
        {%- do set_batch((batches() | first) or [0]) %}
    {%- endif %}
{% endmacro %}

{#- After the model: the other batches. -#}
{% macro add_batches() %}
    {%- if execute and target.type == 'duckdb' %}
        {%- for parts in batches()[1:] %}
            {%- do set_batch(parts) %}
            {%- do run_query('insert into ' ~ this ~ ' ' ~ model.compiled_code) %}
        {%- endfor %}
        {%- do set_batch([0, 255]) %}
    {%- endif %}
{% endmacro %}

{% macro set_batch(parts) %}
    {%- do run_query('set variable first_part = ' ~ (parts | first)) %}
    {%- do run_query('set variable last_part = ' ~ (parts | last)) %}
{% endmacro %}

{% macro batches() %}
    {%- set parts = parts_of(ref('int_persons_started')) %}
    {%- set row_count = run_query(
        'select (select count(*) from ' ~ ref('int_events_ordered')
        ~ ') + (select count(*) from ' ~ ref('int_visits_ordered') ~ ')'
    ).columns[0].values()[0] | int %}
    {%- set batch_count = row_count // var('rows_per_batch') + 1 %}
    {{- return(
        parts | batch((parts | length / batch_count) | round(0, 'ceil') | int or 1) | list
    ) }}
{% endmacro %}
