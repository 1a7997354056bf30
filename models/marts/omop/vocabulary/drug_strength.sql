-- The source's rows.
select
    cast(drug_concept_id as bigint) as drug_concept_id,
    cast(ingredient_concept_id as bigint) as ingredient_concept_id,
    cast(amount_value as double) as amount_value,
    cast(amount_unit_concept_id as bigint) as amount_unit_concept_id,
    cast(numerator_value as double) as numerator_value,
    cast(numerator_unit_concept_id as bigint) as numerator_unit_concept_id,
    cast(denominator_value as double) as denominator_value,
    cast(denominator_unit_concept_id as bigint) as denominator_unit_concept_id,
    cast(box_size as int) as box_size,
    cast(valid_start_date as date) as valid_start_date,
    cast(valid_end_date as date) as valid_end_date,
    cast(invalid_reason as string) as invalid_reason
from {{ source('source_cdm', 'drug_strength') }}
