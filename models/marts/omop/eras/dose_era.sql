-- One row per person, ingredient and constant daily dose. The dose as OHDSI reckons it:
-- what a unit holds times the units a day, and of patches what they give in an hour.
{%- set hour_concept_id = 8505 %}
{%- set keys = [
    'person_id', 'ingredient_concept_id', 'unit_concept_id', 'dose_value'
] %}
{%- set days = 30 %}
with

exposures as (

    select
        person_id,
        drug_concept_id,
        drug_exposure_start_date as start_date,
        greatest(drug_exposure_start_date, drug_exposure_end_date) as end_date,
        quantity,
        {{ days_between(
            'drug_exposure_start_date',
            'greatest(drug_exposure_start_date, drug_exposure_end_date)'
        ) }} + 1 as days
    from {{ ref('drug_exposure') }}
    where quantity > 0 and coalesce(days_supply, 0) >= 0

),

strengths as (

    select * from {{ ref('drug_strength') }}
    where coalesce(invalid_reason, '') = ''

),

doses as (

    select
        exposures.person_id,
        strengths.ingredient_concept_id,
        exposures.start_date,
        exposures.end_date,
        coalesce(
            case
                when strengths.amount_value > 0 then strengths.amount_unit_concept_id
            end,
            strengths.numerator_unit_concept_id
        ) as unit_concept_id,
        case
            when strengths.amount_value > 0
                then strengths.amount_value * exposures.quantity / exposures.days
            when strengths.denominator_unit_concept_id = {{ hour_concept_id }}
                then 24 * strengths.numerator_value
            else strengths.numerator_value * exposures.quantity / exposures.days
        end as dose_value
    from exposures
    inner join strengths on exposures.drug_concept_id = strengths.drug_concept_id

),

spans as (

    select
        person_id,
        ingredient_concept_id,
        unit_concept_id,
        start_date,
        end_date,
        -- what differs by the last digits alone is one dose
        round(dose_value, 6) as dose_value
    from doses
    where unit_concept_id is not null and dose_value > 0

),

eras as (

    {{ eras('spans', keys, days) }} -- noqa: PRS

),

final as (

    select
        cast({{ era_id(keys) }} as bigint) as dose_era_id,
        cast(person_id as bigint) as person_id,
        cast(ingredient_concept_id as bigint) as drug_concept_id,
        cast(unit_concept_id as bigint) as unit_concept_id,
        cast(dose_value as double) as dose_value,
        cast(start_date as date) as dose_era_start_date,
        cast(end_date as date) as dose_era_end_date
    from eras

)

select * from final
