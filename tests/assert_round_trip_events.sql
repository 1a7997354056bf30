-- Every distinct event of the source comes back with its table, concept, date, visit
-- (or none), hour, unit, bin of the number, operator, value concept, days_supply, and
-- quantity and end where they are on, from the very row that it was encoded from; and
-- none comes back twice, or from nowhere.
{{ config(tags=['round_trip']) }}

{%- set columns = [
    'source_table', 'person_id', 'has_visit', 'visit_occurrence_id', 'concept_id',
    'source_concept_id',
    'event_date', 'hour', 'unit_concept_id', 'has_number', 'value_bin',
    'operator_concept_id', 'value_as_concept_id', 'has_quantity', 'quantity_bin',
    'days_supply', 'end_date'
] | join(', ') %}
with

expected as (

    select * from {{ ref('int_events_expected') }}

),

restored as (

    select source_id, {{ columns }} from {{ ref('int_events_restored') }}

),

-- source rows that repeat one another, exact numbers included, are one event
distinct_events as (

    select {{ columns }}
    from (select distinct {{ columns }}, value_as_number, quantity from expected)
            as distinct_rows

),

missing as (

    select 'missing' as difference, cast(null as bigint) as source_id, {{ columns }}
    from distinct_events
    except all
    select 'missing' as difference, cast(null as bigint) as source_id, {{ columns }}
    from restored

),

repeated as (

    select 'repeated' as difference, cast(null as bigint) as source_id, {{ columns }}
    from restored
    except all
    select 'repeated' as difference, cast(null as bigint) as source_id, {{ columns }}
    from distinct_events

),

invented as (

    select 'invented' as difference, source_id, {{ columns }} from restored
    except all
    select 'invented' as difference, source_id, {{ columns }} from expected

)

select * from missing
union all
select * from repeated
union all
select * from invented
