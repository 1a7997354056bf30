{#-
    The tokens of a step of a history, as int_tokens_placed has them: a row of 21 places,
    filled or NULL, since the steps are in order and no token of one needs a row of its own.
-#}
{% macro run_places() %}
    {%- set places = [] %}
    {%- for place in range(1, 22) %}
        {%- do places.append('token_' ~ place) %}
    {%- endfor %}
    {{- return(places) }}
{% endmacro %}

{#- The columns of a run from expressions of token ids, one for each place. -#}
{% macro run(token_ids) -%}
    {%- for place in run_places() %}
        {{ token_ids[loop.index0] }} as {{ place }}{{ ',' if not loop.last }}
    {%- endfor %}
{%- endmacro %}

{#-
    The token id of a part of the record that is there, else NULL; -1 where the language
    has none for it: it must fail in assert_every_token_is_placed, not vanish.
-#}
{% macro token_or_missing(part, token_id) -%}
    case when {{ part }} is not null then coalesce({{ token_id }}, -1) end
{%- endmacro %}

{#- The three token ids that spell a number of days, where it is there. -#}
{% macro spelled_days(is_there, spelled) %}
    {{- return([
        'case when ' ~ is_there ~ ' then coalesce(' ~ spelled ~ '.token_id_1, -1) end',
        'case when ' ~ is_there ~ ' then ' ~ spelled ~ '.token_id_2 end',
        'case when ' ~ is_there ~ ' then ' ~ spelled ~ '.token_id_3 end',
    ]) }}
{% endmacro %}

{#- The tokens of a run: what is filled of its places. -#}
{% macro run_tokens() -%}
    {{ array_of(run_places()) }}
{%- endmacro %}
