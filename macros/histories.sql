{#-
    Sequences are walked and counted as int_sequences_walked and int_tokens_counted say.
    On DuckDB Python does it in their place, after a model that has made no rows: see
    omop_gpt.histories. Hooks around the model set a variable, so that its own query is
    what a unit test runs.
-#}

{#- Whether the model's own query is to make the rows. -#}
{% macro is_by_query() -%}
    {{ "not coalesce(getvariable('by_python'), false)" if target.type == 'duckdb'
        else 'true' }}
{%- endmacro %}

{% macro leave_to_python() %}
    {%- if execute and target.type == 'duckdb' %}
        {%- do run_query('set variable by_python = true') %}
    {%- endif %}
{% endmacro %}

{#- After the model is committed: `what` is done to the sequences of a query. -#}
{% macro add_by_python(what, sequences) %}
    {%- if execute and target.type == 'duckdb' %}
        {%- do run_query('reset variable by_python') %}
        {%- do adapter.store_relation('plugin', this, [], none, 'none', {
            what: sequences, 'into': this | string, 'language': language_queries()
        }) %}
    {%- endif %}
{% endmacro %}

{#- What Python looks up, by the ids and numbers that the seeds and the vocabulary have. -#}
{% macro language_queries() %}
    {{- return({
        'tokens':
            'select coalesce(kinds.kind_order, 0) as kinds, ' ~ steps_of_tokens()
            ~ ' from ' ~ ref('stg_generated__vocabulary') ~ ' as vocabulary left join '
            ~ ref('kinds') ~ ' as kinds on vocabulary.kind = kinds.kind'
            ~ ' order by vocabulary.token_id',
        'transitions':
            'select states.state_order as state, kinds.kind_order as kind,'
            ~ ' next_states.state_order as next_state from ' ~ ref('transitions')
            ~ ' as transitions inner join ' ~ ref('states')
            ~ ' as states on transitions.state = states.state inner join '
            ~ ref('kinds') ~ ' as kinds on transitions.kind = kinds.kind inner join '
            ~ ref('states')
            ~ ' as next_states on transitions.next_state = next_states.state',
        'ends':
            'select state_order as state from ' ~ ref('states')
            ~ " where place = 'end'",
        'openers':
            'select kind_order as kind from ' ~ ref('kinds')
            ~ " where makes = 'person'",
    }) }}
{% endmacro %}

{#- What a token adds to the running counts of its sequence. -#}
{% macro steps_of_tokens() -%}
    case when vocabulary.kind in ('visit', 'no_visit') then 1 else 0 end as visits,
    case when vocabulary.kind = 'event' then 1 else 0 end as events,
    case when kinds.role in ('gap', 'move') then vocabulary.days else 0 end as days,
    -- a change of day or visit resets the hour to unknown (-1); others leave it (-2)
    cast(case
        when vocabulary.kind = 'hour' then vocabulary.number
        when kinds.role in ('gap', 'move') or vocabulary.kind = 'bos' then -1
        else -2
    end as int) as hours,
    cast(case when vocabulary.kind = 'year' then vocabulary.number else 0 end as int)
        as years
{%- endmacro %}

{% macro all_sequences() -%}
    select person_id, token_ids from {{ ref('stg_generated__sequences') }}
{%- endmacro %}

{#- In the order of persons: what is made of them lies in that of its ids. -#}
{% macro accepted_sequences() -%}
    select person_id, token_ids from {{ ref('int_sequences_checked') }}
    where reason is null
    order by person_id
{%- endmacro %}
