-- Tokens in = tokens of rows + structure + tokens left out; and the rows of the ledger
-- are the rows of the tables.
with

ledger as (

    select * from {{ ref('decode_ledger') }}

),

tokens_in as (

    select coalesce(sum(token_count), 0) as token_count
    from {{ ref('int_sequences_checked') }}

),

ledger_tokens as (

    select coalesce(sum(token_count), 0) as token_count
    from ledger

),

table_rows as (

    {%- for table in ['person', 'visit_occurrence', 'death', 'condition_occurrence',
        'drug_exposure', 'procedure_occurrence', 'measurement', 'observation',
        'device_exposure'] %}
        select '{{ table }}' as target, count(*) as row_count from {{ ref(table) }}
        {{- "\n        union all" if not loop.last }}
    {%- endfor %}

)

select
    'tokens' as target,
    tokens_in.token_count as expected,
    ledger_tokens.token_count as found
from tokens_in
cross join ledger_tokens
where tokens_in.token_count <> ledger_tokens.token_count

union all

select
    table_rows.target,
    table_rows.row_count as expected,
    coalesce(ledger.row_count, 0) as found
from table_rows
left join ledger on table_rows.target = ledger.target and ledger.outcome = 'row'
where table_rows.row_count <> coalesce(ledger.row_count, 0)
