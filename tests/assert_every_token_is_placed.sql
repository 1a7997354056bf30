-- Nothing in the timeline lacks a token: what the language cannot say has -1.
{{ config(tags=['encode']) }}
select * from {{ ref('int_tokens_placed') }}
where least({{ run_places() | join(', ') }}) < 0
