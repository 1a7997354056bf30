-- One row per vocabulary of the source, and per vocabulary that concept names. The name
-- of the file is another, because the timeline has a vocabulary, too.
{{ config(alias='vocabulary') }}
with

passed as (

    select
        cast(vocabulary_id as string) as vocabulary_id,
        cast(coalesce(vocabulary_name, vocabulary_id) as string) as vocabulary_name,
        cast(vocabulary_reference as string) as vocabulary_reference,
        cast(vocabulary_version as string) as vocabulary_version,
        cast(coalesce(vocabulary_concept_id, 0) as bigint) as vocabulary_concept_id
    from {{ source('source_cdm', 'vocabulary') }}

),

added as (

    select distinct
        vocabulary_id,
        vocabulary_id as vocabulary_name,
        cast(null as string) as vocabulary_reference,
        cast(null as string) as vocabulary_version,
        cast(0 as bigint) as vocabulary_concept_id
    from {{ ref('concept') }}
    where vocabulary_id not in (select vocabulary_id from passed)

),

final as (

    select * from passed
    union all
    select * from added

)

select * from final
order by vocabulary_id
