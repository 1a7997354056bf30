-- One row per event token and value token that follows it in training: what the
-- sampler may write after an event.
with

placed as (

    select * from {{ ref('int_tokens_placed') }}
    where event_order between 1 and 2147483646

),

vocabulary as (

    select
        vocabulary.token_id,
        vocabulary.kind,
        kinds.role
    from {{ ref('int_vocabulary') }} as vocabulary
    inner join {{ ref('kinds') }} as kinds on vocabulary.kind = kinds.kind
    where vocabulary.kind = 'event' or kinds.role = 'value'

),

persons as (

    select person_id from {{ ref('persons') }}
    where split = 'train'

),

typed as (

    select
        placed.person_id,
        placed.visit_order,
        placed.event_order,
        placed.token_id,
        vocabulary.kind
    from placed
    inner join vocabulary on placed.token_id = vocabulary.token_id
    inner join persons on placed.person_id = persons.person_id

),

final as (

    select
        events.token_id as event_token_id,
        value_tokens.token_id as value_token_id,
        count(*) as train_count,
        count(distinct value_tokens.person_id) as train_persons
    from typed as value_tokens
    inner join typed as events
        on
            value_tokens.person_id = events.person_id
            and value_tokens.visit_order = events.visit_order
            and value_tokens.event_order = events.event_order
    where events.kind = 'event' and value_tokens.kind <> 'event'
    group by 1, 2

)

select * from final
order by event_token_id, value_token_id
