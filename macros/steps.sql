{#-
    Steps of histories, as int_histories_ordered sorts them. DuckDB then looks back in the
    rows as they lie, which is one pass and no second sort, and crosses from person to
    person; elsewhere each person is a window of its own.
-#}

{#- The order of the steps of all persons: unique, but for rows that repeat one another. -#}
{% macro order_of_steps() -%}
    person_id,
    step,
    visit_start_date nulls last,
    is_loose,
    visit_end_date nulls last,
    visit_concept_id nulls last,
    visit_occurrence_id nulls last,
    repetition nulls last,
    {{ written_of_event() | join(' nulls first,\n    ') }} nulls first,
    source_id nulls first
{%- endmacro %}

{#- Columns of the step before, each as previous_<column>. -#}
{% macro previous_of(columns) -%}
    {%- set window = 'partition by person_id order by ' ~ order_of_steps() -%}
    {%- for column in columns %}
        lag({{ column }}) over ({{ window if target.type != 'duckdb' }})
            as previous_{{ column }}{{ ',' if not loop.last }}
    {%- endfor %}
{%- endmacro %}

{#- A column of the step after. -#}
{% macro next_of(column) -%}
    {%- set window = 'partition by person_id order by ' ~ order_of_steps() -%}
    lead({{ column }}) over ({{ window if target.type != 'duckdb' }})
{%- endmacro %}

{#- Whether any of the columns is another than in the step before. -#}
{% macro differs_from_previous(columns) -%}
    {%- for column in columns %}
        {{ column }} is distinct from previous_{{ column }}{{ ' or' if not loop.last }}
    {%- endfor %}
{%- endmacro %}

{#- An aggregate of all steps up to each; `plain` is the same of rows as they lie. -#}
{% macro running(aggregate, plain=none) -%}
    {%- if target.type == 'duckdb' -%}
        {%- if plain -%}
            {{ plain }} over ()
        {%- else -%}
            {{ aggregate }} over (rows between unbounded preceding and current row)
        {%- endif -%}
    {%- else -%}
        {{ aggregate }} over (
            partition by person_id
            order by {{ order_of_steps() }}
            rows between unbounded preceding and current row
        )
    {%- endif -%}
{%- endmacro %}
