-- One row per concept that the synthetic tables use and the source's table lacks.
with

used as (

    select * from {{ ref('int_concepts_used') }}

),

domains as (

    select
        cdm_table,
        cdm_field,
        parameter as domain_id
    from {{ ref('quality_checks') }}
    where check_name = 'fkDomain'

),

event_names as (

    select
        concept_id,
        max(name) as name
    from {{ ref('stg_generated__vocabulary') }}
    where concept_id is not null
    group by 1

),

type_names as (

    select distinct
        type_concept_id as concept_id,
        type_concept_name as name
    from {{ ref('type_concepts') }}

),

lacking as (

    select
        used.concept_id,
        'Concept ' || cast(used.concept_id as {{ dbt.type_string() }}) as name,
        min(domains.domain_id) as domain_id
    from used
    left join domains
        on used.cdm_table = domains.cdm_table and used.cdm_field = domains.cdm_field
    where
        used.concept_id not in (
            select concept_id from {{ source('source_cdm', 'concept') }}
        )
    group by 1, 2

),

final as (

    select
        lacking.concept_id,
        -- as the vocabularies have it
        case
            when lacking.concept_id = 0 then 'No matching concept'
            else coalesce(event_names.name, type_names.name, lacking.name)
        end as concept_name,
        case
            when lacking.concept_id = 0 then 'Metadata'
            else coalesce(lacking.domain_id, 'Observation')
        end as domain_id,
        case when lacking.concept_id = 0 then 'None' else 'omop-gpt' end
            as vocabulary_id,
        case when lacking.concept_id = 0 then 'Undefined' else 'Stub' end
            as concept_class_id,
        case when lacking.concept_id <> 0 then 'S' end as standard_concept,
        case
            when lacking.concept_id = 0 then 'No matching concept'
            else cast(lacking.concept_id as {{ dbt.type_string() }})
        end as concept_code
    from lacking
    left join event_names on lacking.concept_id = event_names.concept_id
    left join type_names on lacking.concept_id = type_names.concept_id

)

select * from final
