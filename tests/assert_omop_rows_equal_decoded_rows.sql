-- Rows: tables whose number of rows is not the number that the sequences hold.
{{ config(group='decode') }}
{%- set tables = [
    'person',
    'visit_occurrence',
    'condition_occurrence',
    'drug_exposure',
    'procedure_occurrence',
    'measurement',
    'observation',
    'device_exposure',
    'death',
] %}

with

decoded as (

    select
        'person' as table_name,
        count(*) as count_decoded
    from {{ ref('int_persons_decoded') }}
    union all
    select
        'visit_occurrence' as table_name,
        count(*) as count_decoded
    from {{ ref('int_visits_decoded') }}
    where not is_loose
    union all
    select
        source_table as table_name,
        count(*) as count_decoded
    from {{ ref('int_events_decoded') }}
    group by source_table
    union all
    select
        'death' as table_name,
        count(*) as count_decoded
    from {{ ref('int_deaths_decoded') }}

),

written as (

    {% for table in tables %}
        select
            '{{ table }}' as table_name,
            count(*) as count_written
        from {{ ref(table) }}
        {{ 'union all' if not loop.last }}
    {% endfor %}

)

-- A table without events is not in `decoded`, one of another name not in `written`.
select
    coalesce(decoded.table_name, written.table_name) as table_name,
    coalesce(decoded.count_decoded, 0) as count_decoded,
    coalesce(written.count_written, 0) as count_written
from decoded
full outer join written on decoded.table_name = written.table_name
where coalesce(decoded.count_decoded, 0) <> coalesce(written.count_written, 0)
