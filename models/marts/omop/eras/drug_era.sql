-- One row per person and ingredient for as long as it is taken. Its gap_days are those
-- that no exposure covers.
{%- set keys = ['person_id', 'ingredient_concept_id'] %}
{%- set days = 30 %}
with

ingredients as (

    select * from {{ ref('int_drug_ingredients') }}

),

spans as (

    select
        exposures.person_id,
        ingredients.ingredient_concept_id,
        exposures.drug_exposure_start_date as start_date,
        greatest(
            exposures.drug_exposure_start_date, exposures.drug_exposure_end_date
        ) as end_date
    from {{ ref('drug_exposure') }} as exposures
    inner join ingredients on exposures.drug_concept_id = ingredients.drug_concept_id
    where coalesce(exposures.days_supply, 0) >= 0

),

eras as (

    {{ eras('spans', keys, days) }} -- noqa: PRS

),

final as (

    select
        cast({{ era_id(keys) }} as bigint) as drug_era_id,
        cast(person_id as bigint) as person_id,
        cast(ingredient_concept_id as bigint) as drug_concept_id,
        cast(start_date as date) as drug_era_start_date,
        cast(end_date as date) as drug_era_end_date,
        cast(span_count as int) as drug_exposure_count,
        cast(gap_days as int) as gap_days
    from eras

)

select * from final
