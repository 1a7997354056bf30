-- One row per token, with its meaning and how often training has it.
-- depends_on: {{ ref('tokens') }}
with

vocabulary as (

    select * from {{ ref('int_vocabulary') }}

),

concepts as (

    -- a concept table that repeats an id must not repeat a token
    select concept_id, min(concept_name) as concept_name
    from {{ ref('stg_omop__concept') }}
    group by 1

),

{%- if has_counts_of_tokens() %}

counts as (

    select * from {{ counts_of_tokens() }}

),
{%- else %}

    person_tokens as (

        select
            token_id,
            person_id,
            count(*) as token_count
        from {{ ref('tokens') }}
        where split = 'train'
        group by 1, 2

    ),

    counts as (

        select
            token_id,
            sum(token_count) as train_count,
            count(*) as train_persons
        from person_tokens
        group by 1

    ),
{%- endif %}

final as (

    select
        vocabulary.token_id,
        vocabulary.token,
        vocabulary.kind,
        vocabulary.days,
        vocabulary.number,
        vocabulary.source_table,
        vocabulary.concept_id,
        vocabulary.unit_concept_id,
        vocabulary.source_concept_id,
        concepts.concept_name as name,
        cast(coalesce(counts.train_count, 0) as bigint) as train_count,
        coalesce(counts.train_persons, 0) as train_persons
    from vocabulary
    left join concepts
        on
            coalesce(vocabulary.source_concept_id, vocabulary.concept_id)
            = concepts.concept_id
    left join counts on vocabulary.token_id = counts.token_id

)

select * from final
order by token_id
