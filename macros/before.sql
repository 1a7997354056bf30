{#-
    An encode that goes on from an earlier one: its warehouse is var `before_warehouse`.
    Its vocabulary, bins and roll-ups stay as they are, and persons whose rows are the
    same are taken over. DuckDB only.
-#}

{% macro has_before() %}
    {{- return(var('before_warehouse') != '') }}
{% endmacro %}

{#- A table of the earlier encode. -#}
{% macro before(model_name) -%}
    before.encode_steps.{{ model_name }}
{%- endmacro %}

{% macro attach_before() %}
    {%- if execute and has_before() %}
        {%- do run_query(
            "attach if not exists '" ~ dbt.escape_single_quotes(var('before_warehouse'))
            ~ "' as before (read_only)"
        ) %}
    {%- endif %}
{% endmacro %}

{#- Condition that leaves out persons who are taken over. -#}
{% macro is_new(person_id) -%}
    {%- if has_before() -%}
        {{ person_id }} not in (
            select kept.person_id from {{ ref('int_persons_kept') }} as kept
        )
    {%- else -%}
        true
    {%- endif -%}
{%- endmacro %}

{#- The files of a table of the earlier timeline. -#}
{% macro before_file(name) -%}
    read_parquet('
    {{- dbt.escape_single_quotes(var('before_warehouse').rsplit('/', 1)[0]) -}}
    /timeline/{{ name }}/*.parquet')
{%- endmacro %}

{#- A table of the earlier encode, its event tokens numbered as they are now. -#}
{% macro before_renumbered(model_name) -%}
    select earlier.* replace (event_tokens.token_order as token_order)
    from {{ before(model_name) }} as earlier
    inner join {{ before('int_event_tokens') }} as earlier_tokens
        on earlier.token_order = earlier_tokens.token_order
    inner join {{ ref('int_event_tokens') }} as event_tokens
        on earlier_tokens.token = event_tokens.token
{%- endmacro %}
