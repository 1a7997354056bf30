-- The runs of a sequence adjoin: positions count on from 1, none is left out or taken
-- twice. Packing checks every single one.
{{ config(tags=['encode']) }}
select
    person_id,
    min(first_position) as first_position,
    max(first_position + token_count - 1) as last_position,
    sum(token_count) as token_count
from {{ ref('int_tokens_placed') }}
group by 1
having
    min(first_position) <> 1
    or max(first_position + token_count - 1) <> sum(token_count)
