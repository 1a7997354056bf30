-- One row per drug concept of the exposures and ingredient of it; the drug itself where
-- none is known. Concept 0 has no row. The concepts that are added to the source's are
-- no ingredients, so eras need not wait for them.
with

drugs as (

    select distinct drug_concept_id
    from {{ ref('drug_exposure') }}
    where drug_concept_id <> 0

),

ingredients as (

    select concept_id
    from {{ source('source_cdm', 'concept') }}
    where
        concept_class_id = 'Ingredient'
        and vocabulary_id in ('RxNorm', 'RxNorm Extension')

),

found as (

    select distinct
        drugs.drug_concept_id,
        ingredients.concept_id as ingredient_concept_id
    from drugs
    inner join {{ ref('concept_ancestor') }} as ancestors
        on drugs.drug_concept_id = ancestors.descendant_concept_id
    inner join ingredients on ancestors.ancestor_concept_id = ingredients.concept_id

),

final as (

    select
        drugs.drug_concept_id,
        coalesce(found.ingredient_concept_id, drugs.drug_concept_id)
            as ingredient_concept_id,
        found.ingredient_concept_id is not null or ingredients.concept_id is not null
            as is_ingredient
    from drugs
    left join found on drugs.drug_concept_id = found.drug_concept_id
    left join ingredients on drugs.drug_concept_id = ingredients.concept_id

)

select * from final
