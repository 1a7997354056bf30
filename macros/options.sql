{#- Parts of where clauses that options of encode add to more than one model. -#}

{#- Whether a date lies in the year in which its person, joined as `persons`, turns 90. -#}
{% macro is_ninety(date) -%}
    extract(year from {{ date }}) - persons.year_of_birth >= 90
{%- endmacro %}

{#- Texts as a list of SQL literals. -#}
{% macro quoted(texts) -%}
    {%- for text in texts -%}
        '{{ dbt.escape_single_quotes(text) }}'{{ ', ' if not loop.last }}
    {%- endfor -%}
{%- endmacro %}
