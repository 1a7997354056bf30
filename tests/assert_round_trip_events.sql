-- Every distinct event of the source comes back with its table, concept, date, visit
-- (or none), hour, unit, operator, value concept and days_supply, from the very row
-- that it was encoded from; and none comes back twice, or from nowhere.
{{ config(tags=['round_trip']) }}

{%- set columns = [
    'source_table', 'person_id', 'has_visit', 'visit_occurrence_id', 'concept_id',
    'event_date', 'hour', 'unit_concept_id', 'operator_concept_id',
    'value_as_concept_id', 'days_supply'
] | join(', ') %}
with

expected as (

    select source_id, {{ columns }} from {{ ref('int_events_expected') }}

),

restored as (

    select source_id, {{ columns }} from {{ ref('int_events_restored') }}

),

-- source rows that repeat one another are one event
missing as (

    select distinct
        'missing' as difference,
        cast(null as bigint) as source_id,
        {{ columns }}
    from expected
    except all
    select 'missing' as difference, cast(null as bigint) as source_id, {{ columns }}
    from restored

),

invented as (

    select 'invented' as difference, restored.* from restored
    except all
    select 'invented' as difference, expected.* from expected

),

repeated as (

    select 'repeated' as difference, cast(null as bigint) as source_id, {{ columns }}
    from restored
    group by {{ columns }}
    having count(*) > 1

)

select * from missing
union all
select * from invented
union all
select * from repeated
