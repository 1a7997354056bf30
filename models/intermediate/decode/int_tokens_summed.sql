-- One row per token of the accepted sequences: how often they have it.
{{ config(post_hook="{{ read_rows('tokens') }}") }}
select
    token_id,
    count(*) as token_count
from {{ ref('int_tokens_counted') }}
group by token_id
