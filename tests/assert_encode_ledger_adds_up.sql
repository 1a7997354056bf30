-- Rows in = rows encoded + rows left out, for every source table; and what the ledger
-- calls encoded is what the timeline holds.
{{ config(tags=['encode']) }}
with

ledger as (

    select
        source_table,
        sum(row_count) as ledger_rows,
        sum(case when outcome = 'encoded' then row_count else 0 end) as encoded_rows
    from {{ ref('encode_ledger') }}
    where outcome <> 'note'
    group by 1

),

source_rows as (

    {%- for table in ['person', 'visit_occurrence', 'death', 'condition_occurrence',
        'drug_exposure', 'procedure_occurrence', 'measurement', 'observation',
        'device_exposure'] %}
        select '{{ table }}' as source_table, count(*) as row_count
        from {{ ref('stg_omop__' ~ table) }}
        {{- "\n        union all" if not loop.last }}
    {%- endfor %}

),

timeline_rows as (

    select 'person' as source_table, count(*) as row_count
    from {{ ref('persons') }}
    union all
    select 'death' as source_table, count(death_date) as row_count
    from {{ ref('persons') }}
    union all
    select 'visit_occurrence' as source_table, count(*) as row_count
    from {{ ref('visits') }}
    where not is_loose
    union all
    select source_table, count(*) as row_count
    from {{ ref('events') }}
    group by 1

)

select
    source_rows.source_table,
    source_rows.row_count as source_rows,
    ledger.ledger_rows,
    ledger.encoded_rows,
    timeline_rows.row_count as timeline_rows
from source_rows
left join ledger on source_rows.source_table = ledger.source_table
left join timeline_rows on source_rows.source_table = timeline_rows.source_table
where
    source_rows.row_count <> coalesce(ledger.ledger_rows, 0)
    or coalesce(ledger.encoded_rows, 0) <> coalesce(timeline_rows.row_count, 0)
