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

{#- The token of each event, by its token_order. -#}
{% macro tokens_of_events() -%}
    select event_tokens.token_order, vocabulary.token_id
    from {{ ref('int_event_tokens') }} as event_tokens
    inner join {{ ref('int_vocabulary') }} as vocabulary
        on event_tokens.token = vocabulary.token
{%- endmacro %}

{#- The tokens that spell each number of days, by role. -#}
{% macro tokens_of_days() -%}
    select
        spelled.role,
        spelled.days,
        tokens_1.token_id as token_id_1,
        tokens_2.token_id as token_id_2,
        tokens_3.token_id as token_id_3
    from {{ ref('int_days_spelled') }} as spelled
    inner join {{ ref('int_vocabulary') }} as tokens_1
        on spelled.token_1 = tokens_1.token
    left join {{ ref('int_vocabulary') }} as tokens_2
        on spelled.token_2 = tokens_2.token
    left join {{ ref('int_vocabulary') }} as tokens_3
        on spelled.token_3 = tokens_3.token
{%- endmacro %}
