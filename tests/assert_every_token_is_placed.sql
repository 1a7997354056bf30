-- Nothing in the timeline lacks a token: what the language cannot say has -1.
{{ config(tags=['encode']) }}
select * from {{ ref('tokens') }}
where token_id < 0
