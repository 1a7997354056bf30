-- One row per event token that the data has: table, concept (or code) and unit, and the
-- place of the token among them as text, which orders the events of one moment.
with

events as (

    select distinct table_order, concept_id, unit_concept_id, source_concept_id
    from {{ ref('int_events_checked') }}
    where reason is null

),

named as (

    select
        events.table_order,
        event_tables.source_table,
        events.concept_id,
        events.unit_concept_id,
        events.source_concept_id,
        event_tables.prefix
        || coalesce(codes.code, cast(events.concept_id as {{ dbt.type_string() }}))
        || coalesce(
            '@' || cast(events.unit_concept_id as {{ dbt.type_string() }}), ''
        ) as token
    from events
    inner join {{ ref('event_tables') }} as event_tables
        on events.table_order = event_tables.table_order
    left join {{ ref('int_source_codes') }} as codes
        on events.source_concept_id = codes.concept_id

),

united as (

    select * from named
    {%- if has_before() %}
    union
    -- what no row has any more stays a word of the language
    select
        table_order,
        source_table,
        concept_id,
        unit_concept_id,
        source_concept_id,
        token
    from {{ before('int_event_tokens') }}
    {%- endif %}

),

ordered as (

    select
        *,
        cast(row_number() over (order by token) as int) as token_order
    from united

)

select * from ordered
