-- Nothing in the timeline lacks a token: what the language cannot say has none.
{{ config(tags=['encode']) }}
select * from {{ ref('tokens') }}
where token_id is null or kind is null
