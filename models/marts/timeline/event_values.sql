-- One row per event token and value token that follows it in training: what the
-- sampler may write after an event.
with

events as (

    {{ events_of_training() }}

),

united as (

    {%- for kind, column, meaning in [
        ('number', 'value_bin', 'number'),
        ('operator', 'operator_concept_id', 'concept_id'),
        ('value_concept', 'value_as_concept_id', 'concept_id'),
        ('quantity', 'quantity_bin', 'number'),
        ('days_supply', 'days_supply', 'number'),
    ] %}
        select
            '{{ kind }}' as kind,
            token_order,
            {{ column if meaning == 'number' else 'cast(null as bigint)' }} as number,
            {{ column if meaning == 'concept_id' else 'cast(null as bigint)' }}
                as concept_id,
            count(*) as train_count,
            count(distinct person_id) as train_persons
        from events
        where {{ column }} is not null
        group by 1, 2, 3, 4
        {{- "\n\n    union all\n" if not loop.last }}
    {%- endfor %}

),

vocabulary as (

    select * from {{ ref('int_vocabulary') }}

),

final as (

    select
        event_vocabulary.token_id as event_token_id,
        value_vocabulary.token_id as value_token_id,
        united.train_count,
        united.train_persons
    from united
    inner join {{ ref('int_event_tokens') }} as event_tokens
        on united.token_order = event_tokens.token_order
    inner join vocabulary as event_vocabulary
        on event_tokens.token = event_vocabulary.token
    inner join vocabulary as value_vocabulary
        on
            united.kind = value_vocabulary.kind
            and coalesce(united.number, united.concept_id)
            = coalesce(value_vocabulary.number, value_vocabulary.concept_id)

)

select * from final
order by event_token_id, value_token_id
