-- One row per person whose sequence tells of the death.
with

decoded_deaths as (

    select * from {{ ref('int_deaths_decoded') }}

),

type_concepts as (

    select * from {{ ref('type_concepts') }}

),

final as (

    select
        cast(decoded_deaths.person_id as bigint) as person_id,
        cast(decoded_deaths.death_date as date) as death_date,
        cast(null as timestamp) as death_datetime,
        cast(type_concepts.type_concept_id as bigint) as death_type_concept_id,
        cast(null as bigint) as cause_concept_id,
        cast(null as string) as cause_source_value,
        cast(null as bigint) as cause_source_concept_id
    from decoded_deaths
    left join type_concepts on type_concepts.source_table = 'death'

)

select * from final
order by person_id
