-- One row per domain of the source, and per domain that concept names.
with

passed as (

    select
        cast(domain_id as string) as domain_id,
        cast(coalesce(domain_name, domain_id) as string) as domain_name,
        cast(coalesce(domain_concept_id, 0) as bigint) as domain_concept_id
    from {{ source('source_cdm', 'domain') }}

),

added as (

    select distinct
        domain_id,
        domain_id as domain_name,
        cast(0 as bigint) as domain_concept_id
    from {{ ref('concept') }}
    where domain_id not in (select domain_id from passed)

),

final as (

    select * from passed
    union all
    select * from added

)

select * from final
order by domain_id
