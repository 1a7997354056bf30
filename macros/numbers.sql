{#- Numbers, where warehouses differ or say little. -#}

{#- Whether a number is neither NaN nor infinite; true for NULL. -#}
{% macro is_finite(number) -%}
    (
        {{ number }} is null
        or (not isnan({{ number }}) and abs({{ number }}) < cast('infinity' as double))
    )
{%- endmacro %}

{#-
    A share of 1, from 0 on and below 1, that depends on var value_salt and the values of
    some columns alone: the first eight hexadecimal digits of a hash.
-#}
{% macro hash_share(columns) -%}
    {%- set texts = ["'" ~ var('value_salt') ~ "'"] %}
    {%- for column in columns %}
        {%- do texts.append("':'") %}
        {%- do texts.append('cast(' ~ column ~ ' as ' ~ dbt.type_string() ~ ')') %}
    {%- endfor %}
    {%- set digest = dbt.hash(dbt.concat(texts)) %}
    {%- if target.type == 'duckdb' -%}
        cast(cast('0x' || substr({{ digest }}, 1, 8) as bigint) as double) / 4294967296
    {%- else -%}
        cast(conv(substr({{ digest }}, 1, 8), 16, 10) as double) / 4294967296
    {%- endif -%}
{%- endmacro %}

{#-
    The number at a share of a bin's shape, whose points are evenly spaced quantiles:
    linear between two of them, so it is monotone, with the digits that the bin has.
-#}
{% macro number_within(bins, share) -%}
    {%- set place = '(' ~ share ~ ' * (' ~ array_size(bins ~ '.shape') ~ ' - 1))' %}
    {%- set index = 'cast(floor' ~ place ~ ' as int)' %}
    {%- set point = array_get(bins ~ '.shape', index) %}
    {%- set next_point = array_get(bins ~ '.shape', index ~ ' + 1') %}
    {%- set number = '(' ~ point ~ ' + (' ~ place ~ ' - floor' ~ place ~ ') * ('
        ~ next_point ~ ' - ' ~ point ~ '))' %}
    case
        when {{ bins }}.decimals > 6 then {{ number }}
        else round({{ number }} * power(10, {{ bins }}.decimals))
            / power(10, {{ bins }}.decimals)
    end
{%- endmacro %}
