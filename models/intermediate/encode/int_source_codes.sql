-- One row per source concept, with the code that stands for a row of concept 0 where
-- var `concept_zero` is source_code. A code that two concepts share is the first one's.
with

concepts as (

    select
        concept_id,
        min(vocabulary_id) as vocabulary_id,
        min(concept_code) as concept_code
    from {{ ref('stg_omop__concept') }}
    where
        concept_id <> 0
        and vocabulary_id is not null
        and concept_code is not null
        {%- if var('concept_zero') != 'source_code' %}
        -- nothing was asked for
            and 1 = 0
        {%- endif %}
    group by 1

),

-- a token is one word
coded as (

    select
        concept_id,
        replace(vocabulary_id || '/' || concept_code, ' ', '_') as code
    from concepts

),

final as (

    select
        concept_id,
        code,
        min(concept_id) over (partition by code) as source_concept_id
    from coded

)

select * from final
