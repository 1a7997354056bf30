{#-
    What int_sequences_walked, int_tokens_summed, int_persons_told, int_visits_decoded
    and int_events_decoded say is read of the sequences on DuckDB by Python in their
    place: see omop_gpt.histories. It writes files, which the views of these models read
    from then on; their own queries are for Spark, and what a unit test runs.
-#}

{#- The folder of what Python reads, while dbt runs. -#}
{% macro folder_of_rows() %}
    {{- return(env_var(
        'OMOP_GPT_ROWS', env_var('OMOP_GPT_WAREHOUSE', 'warehouse.duckdb') ~ '.rows'
    )) }}
{% endmacro %}

{#- After int_sequences_walked: walk the grammar over all sequences. -#}
{% macro walk_by_python() %}
    {%- if execute and target.type == 'duckdb' %}
        {%- do adapter.store_relation('plugin', this, [], folder_of_rows(), 'parquet', {
            'do': 'walk', 'sequences': all_sequences(), 'language': language_queries()
        }) %}
        {%- do read_rows('walked') %}
    {%- endif %}
{% endmacro %}

{#- Before the models of persons, visits and events: read those of whole sequences. -#}
{% macro read_by_python() %}
    {%- if execute and target.type == 'duckdb' %}
        {%- do adapter.store_relation('plugin', this, [], folder_of_rows(), 'parquet', {
            'do': 'read',
            'sequences': accepted_sequences(),
            'language': language_queries(),
            'meanings':
                'select token as event_token, source_table, concept_id,'
                ~ ' unit_concept_id, source_concept_id from '
                ~ ref('stg_generated__vocabulary') ~ ' order by token_id',
            'tables': 'select source_table from ' ~ ref('event_tables'),
            'drawn': numbers_drawn(),
        }) %}
    {%- endif %}
{% endmacro %}

{#-
    After a model, let its view read what Python made in its place. The round trip is
    looked at afterwards, and keeps a table.
-#}
{% macro read_rows(name, columns=['*']) %}
    {%- if execute and target.type == 'duckdb' %}
        {%- set are_events = 'source_table' in columns %}
        {%- set rows -%}
            select
                {%- for column in columns %}
                {%- if column == 'type_concept_id' %}
                {{ type_concept_of('source_table' if are_events else "'visit_occurrence'") }} as
                {%- endif %}
                {{ column }}{{ ',' if not loop.last }}
                {%- endfor %}
            from read_parquet(
                '{{ dbt.escape_single_quotes(folder_of_rows()) }}/{{ name }}/**/*.parquet',
                hive_partitioning = {{ are_events }}
            )
        {%- endset %}
        {%- if this.database == 'scratch' %}
            {%- do run_query('create or replace view ' ~ this ~ ' as ' ~ rows) %}
        {%- else %}
            {%- do run_query('drop view ' ~ this) %}
            {%- do run_query('create table ' ~ this ~ ' as ' ~ rows) %}
        {%- endif %}
    {%- endif %}
{% endmacro %}

{#-
    The type concept of rows of a table, as an expression: after a join they would not lie
    in their order any more.
-#}
{% macro type_concept_of(source_table) -%}
    case {{ source_table }}
        {%- for row in run_query(
            'select source_table, type_concept_id from ' ~ ref('type_concepts')
        ).rows %}
        when '{{ row[0] }}' then {{ row[1] }}
        {%- endfor %}
    end
{%- endmacro %}

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

{#- The columns of int_events_decoded. -#}
{% macro columns_of_events() %}
    {{- return([
        'event_id', 'person_id', 'visit_order', 'event_order', 'position',
        'source_table', 'event_token', 'concept_id', 'unit_concept_id',
        'source_concept_id', 'event_date', 'hour', 'value_as_number', 'value_bin',
        'has_unknown_number', 'operator_concept_id', 'value_as_concept_id', 'quantity',
        'quantity_bin', 'has_unknown_quantity', 'days_supply', 'end_date',
        'is_outside_its_visit', 'visit_occurrence_id', 'type_concept_id',
    ]) }}
{% endmacro %}

{#- The numbers of events that Python read, and that have any. -#}
{% macro numbers_drawn() -%}
    with

    events as (

        select * from events_with_bins

    ),

    {{ events_with_numbers([
        'event_id', 'value_as_number', 'has_unknown_number', 'quantity',
        'has_unknown_quantity',
    ]) }}
    order by event_id
{%- endmacro %}

{#- Columns of CTE `events`, or of its numbers: each lies somewhere in its bin. -#}
{% macro events_with_numbers(columns) -%}
{%- set found = {
    'hour': 'cast(events.hour as int)',
    'value_bin': 'cast(events.value_bin as int)',
    'quantity_bin': 'cast(events.quantity_bin as int)',
    'days_supply': 'cast(events.days_supply as int)',
    'value_as_number': number_within('numbers', 'events.number_share'),
    'quantity': number_within('quantities', 'events.quantity_share'),
    'has_unknown_number': 'events.has_number and numbers.bin is null',
    'has_unknown_quantity': 'events.has_quantity and quantities.bin is null',
} %}
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
        {%- for column in columns %}
        {{ found.get(column, 'events.' ~ column) }} as {{ column }}
        {{- ',' if not loop.last }}
        {%- endfor %}
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
