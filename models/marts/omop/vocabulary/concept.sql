-- One row per concept of the source, and per concept that the synthetic tables use.
with

source_concepts as (

    select * from {{ source('source_cdm', 'concept') }}

),

stubs as (

    select * from {{ ref('int_concept_stubs') }}

),

passed as (

    select
        cast(concept_id as bigint) as concept_id,
        cast(coalesce(concept_name, '') as string) as concept_name,
        cast(coalesce(domain_id, 'Metadata') as string) as domain_id,
        cast(coalesce(vocabulary_id, 'None') as string) as vocabulary_id,
        cast(coalesce(concept_class_id, 'Undefined') as string) as concept_class_id,
        cast(standard_concept as string) as standard_concept,
        cast(coalesce(concept_code, cast(concept_id as string)) as string)
            as concept_code,
        cast(coalesce(valid_start_date, date '1970-01-01') as date) as valid_start_date,
        cast(coalesce(valid_end_date, date '2099-12-31') as date) as valid_end_date,
        cast(invalid_reason as string) as invalid_reason
    from source_concepts

),

added as (

    select
        cast(concept_id as bigint) as concept_id,
        cast(concept_name as string) as concept_name,
        cast(domain_id as string) as domain_id,
        cast(vocabulary_id as string) as vocabulary_id,
        cast(concept_class_id as string) as concept_class_id,
        cast(standard_concept as string) as standard_concept,
        cast(concept_code as string) as concept_code,
        date '1970-01-01' as valid_start_date,
        date '2099-12-31' as valid_end_date,
        cast(null as string) as invalid_reason
    from stubs

),

final as (

    select * from passed
    union all
    select * from added

)

select * from final
order by concept_id
