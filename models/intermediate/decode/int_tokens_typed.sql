-- One row per token of an accepted sequence, with what it means.
select
    tokens.person_id,
    tokens.position,
    vocabulary.token,
    vocabulary.kind,
    kinds.role,
    kinds.makes,
    vocabulary.days,
    vocabulary.number,
    vocabulary.source_table,
    vocabulary.concept_id,
    vocabulary.unit_concept_id,
    vocabulary.source_concept_id,
    tokens.visit_order,
    tokens.event_number,
    tokens.hour,
    tokens.cursor_date
from {{ ref('int_tokens_counted') }} as tokens
inner join {{ ref('stg_generated__vocabulary') }} as vocabulary
    on tokens.token_id = vocabulary.token_id
inner join {{ ref('kinds') }} as kinds on vocabulary.kind = kinds.kind
