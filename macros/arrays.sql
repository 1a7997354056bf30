{#- Arrays, where DuckDB and Spark differ. Spark's size() says -1 of NULL: not used. -#}

{#-
    The element at an index that counts from 0; NULL outside the array. DuckDB counts
    from 1, and below 0 from the end: an index that is below 0 must not find one there.
-#}
{% macro array_get(array, index) -%}
    {%- if target.type == 'duckdb' -%}
        {{ array }}[greatest({{ index }}, -1) + 1]
    {%- else -%}
        get({{ array }}, {{ index }})
    {%- endif -%}
{%- endmacro %}

{% macro array_size(array) -%}
    {{ 'len(' ~ array ~ ')' if target.type == 'duckdb' else 'array_size(' ~ array ~ ')' }}
{%- endmacro %}

{#- An expression collected from all rows, in the order of one or more unique keys. -#}
{% macro collect(expression, order_by) -%}
    {%- set keys = [order_by] if order_by is string else order_by -%}
    {%- if target.type == 'duckdb' -%}
        list({{ expression }} order by {{ keys | join(', ') }})
    {%- else -%}
        transform(
            sort_array(collect_list(struct({{ keys | join(', ') }}, {{ expression }} as item))),
            element -> element.item
        )
    {%- endif -%}
{%- endmacro %}

{#- The last value of `step`, an expression of `so_far` and `element`, over an array. -#}
{% macro fold(array, start, step) -%}
    {%- if target.type == 'duckdb' -%}
        list_reduce({{ array }}, lambda so_far, element: {{ step }}, {{ start }})
    {%- else -%}
        aggregate({{ array }}, {{ start }}, (so_far, element) -> {{ step }})
    {%- endif -%}
{%- endmacro %}

{#- One row per element of an array column: position (from 1) and token_id. -#}
{% macro unnest_tokens(relation, columns, array) -%}
    {%- if target.type == 'duckdb' -%}
        select
            {{ columns | join(', ') }},
            generate_subscripts({{ array }}, 1) as position,
            unnest({{ array }}) as token_id
        from {{ relation }}
    {%- else -%}
        select
            {{ columns | join(', ') }},
            tokens.index + 1 as position,
            tokens.token_id
        from {{ relation }}
        lateral view posexplode({{ array }}) tokens as index, token_id
    {%- endif -%}
{%- endmacro %}

{#- An array of what is not NULL among expressions of one type, in their order. -#}
{% macro array_of(expressions) -%}
    {%- if target.type == 'duckdb' -%}
        list_filter([{{ expressions | join(', ') }}], lambda item: item is not null)
    {%- else -%}
        filter(array({{ expressions | join(', ') }}), item -> item is not null)
    {%- endif -%}
{%- endmacro %}

{#- How many elements of an array of numbers, in ascending order, are at most a value. -#}
{% macro array_rank(array, value) -%}
    {%- if target.type == 'duckdb' -%}
        len(list_filter({{ array }}, lambda item: item <= {{ value }}))
    {%- else -%}
        array_size(filter({{ array }}, item -> item <= {{ value }}))
    {%- endif -%}
{%- endmacro %}

{#- An array of numbers with each brought between two bounds. -#}
{% macro array_within(array, least, largest) -%}
    {%- if target.type == 'duckdb' -%}
        list_transform(
            {{ array }},
            lambda item: greatest(least(item, {{ largest }}), {{ least }})
        )
    {%- else -%}
        transform(
            {{ array }}, item -> greatest(least(item, {{ largest }}), {{ least }})
        )
    {%- endif -%}
{%- endmacro %}
