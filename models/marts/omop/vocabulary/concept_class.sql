-- One row per class of the source, and per class that concept names.
with

passed as (

    select
        cast(concept_class_id as string) as concept_class_id,
        cast(coalesce(concept_class_name, concept_class_id) as string)
            as concept_class_name,
        cast(coalesce(concept_class_concept_id, 0) as bigint)
            as concept_class_concept_id
    from {{ source('source_cdm', 'concept_class') }}

),

added as (

    select distinct
        concept_class_id,
        concept_class_id as concept_class_name,
        cast(0 as bigint) as concept_class_concept_id
    from {{ ref('concept') }}
    where concept_class_id not in (select concept_class_id from passed)

),

final as (

    select * from passed
    union all
    select * from added

)

select * from final
order by concept_class_id
