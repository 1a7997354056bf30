{#-
    What int_sequences_walked, int_persons_told, int_visits_decoded and
    int_events_decoded say is read of the sequences on DuckDB by Python in their place,
    after a model that has made no rows: see omop_gpt.histories. Hooks around the model
    set a variable, so that its own query is what a unit test runs.
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

{#-
    After the model is committed: what Python makes of the sequences of a query is
    inserted, by a query of `rows_made`.
-#}
{% macro add_by_python(made, sequences, insert='from rows_made') %}
    {%- if execute and target.type == 'duckdb' %}
        {%- do run_query('reset variable by_python') %}
        {%- do adapter.store_relation('plugin', this, [], none, 'none', {
            'made': made, 'sequences': sequences, 'into': this | string,
            'insert': insert, 'language': language_queries()
        }) %}
    {%- endif %}
{% endmacro %}

{#- What Python looks up, by the ids and numbers that the seeds and the vocabulary have. -#}
{% macro language_queries() %}
    {{- return({
        'tokens':
            'select coalesce(kinds.kind_order, 0) as kinds, ' ~ steps_of_tokens()
            ~ ', ' ~ words_of_tokens()
            ~ ' from ' ~ ref('stg_generated__vocabulary') ~ ' as vocabulary left join '
            ~ ref('kinds') ~ ' as kinds on vocabulary.kind = kinds.kind'
            ~ ' order by vocabulary.token_id',
        'kinds': 'select kind, kind_order from ' ~ ref('kinds'),
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

{#- What Python reads of a token besides. -#}
{% macro words_of_tokens() -%}
    case when kinds.role = 'move' then vocabulary.days else 0 end as stays,
    case when kinds.role = 'end' then vocabulary.days else 0 end as ends,
    case when kinds.role = 'end' then 1 else 0 end as is_end_of_event,
    coalesce(vocabulary.number, 0) as numbers,
    coalesce(vocabulary.concept_id, 0) as concepts
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

{#- The same, with the visits and events before each. -#}
{% macro numbered_sequences() -%}
    select
        persons.person_id,
        sequences.token_ids,
        persons.visits_before,
        persons.events_before
    from {{ ref('int_sequences_checked') }} as sequences
    inner join {{ ref('int_persons_decoded') }} as persons
        on sequences.person_id = persons.person_id
    where sequences.reason is null
    order by persons.person_id
{%- endmacro %}

{#- Events that Python made, with what their tokens mean, and their numbers. -#}
{% macro events_made() -%}
    with

    events as (

        select
            rows_made.*,
            vocabulary.source_table,
            vocabulary.token as event_token,
            vocabulary.concept_id,
            vocabulary.unit_concept_id,
            vocabulary.source_concept_id
        from rows_made
        inner join {{ ref('stg_generated__vocabulary') }} as vocabulary
            on rows_made.token_id = vocabulary.token_id

    ),

    {{ events_with_numbers() }}
{%- endmacro %}

{#- What becomes of CTE `events`: each of its numbers lies somewhere in its bin. -#}
{% macro events_with_numbers() -%}
bins as (

    select * from {{ ref('stg_generated__value_bins') }}

),

-- where in its bin a number lies: a share of 1, by chance, the same on every run
drawn as (

    select
        *,
        case
            when value_bin is not null
                then {{ hash_share(['person_id', 'position', "'number'"]) }}
        end as number_share,
        case
            when quantity_bin is not null
                then {{ hash_share(['person_id', 'position', "'quantity'"]) }}
        end as quantity_share
    from events

),

final as (

    select
        events.event_id,
        events.person_id,
        events.visit_order,
        events.event_order,
        events.position,
        events.source_table,
        events.event_token,
        events.concept_id,
        events.unit_concept_id,
        events.source_concept_id,
        events.event_date,
        cast(events.hour as int) as hour,
        {{ number_within('numbers', 'events.number_share') }} as value_as_number,
        cast(events.value_bin as int) as value_bin,
        events.has_number and numbers.bin is null as has_unknown_number,
        events.operator_concept_id,
        events.value_as_concept_id,
        {{ number_within('quantities', 'events.quantity_share') }} as quantity,
        cast(events.quantity_bin as int) as quantity_bin,
        events.has_quantity and quantities.bin is null as has_unknown_quantity,
        cast(events.days_supply as int) as days_supply,
        events.end_date,
        events.is_outside_its_visit,
        events.visit_occurrence_id
    from drawn as events
    left join bins as numbers
        on
            events.event_token = numbers.event_token
            and events.value_bin = numbers.bin
            and numbers.field = 'number'
    left join bins as quantities
        on
            events.event_token = quantities.event_token
            and events.quantity_bin = quantities.bin
            and quantities.field = 'quantity'

)

select * from final
{%- endmacro %}
