-- One row per table that is no token's row, and what its rows are made of.
with

ingredients as (

    select
        ingredient_concept_id,
        bool_or(is_ingredient) as is_ingredient
    from {{ ref('int_drug_ingredients') }}
    group by 1

),

final as (

    select
        'concept' as cdm_table,
        case
            when concept_id in (select concept_id from {{ ref('int_concept_stubs') }})
                then 'added: used, and not in the source'
            else 'passed through'
        end as made_of,
        count(*) as row_count
    from {{ ref('concept') }}
    group by 1, 2

    union all

    select
        'drug_era' as cdm_table,
        case when ingredients.is_ingredient then 'ingredients' else 'drug concepts' end
            as made_of,
        count(*) as row_count
    from {{ ref('drug_era') }} as eras
    inner join ingredients
        on eras.drug_concept_id = ingredients.ingredient_concept_id
    group by 1, 2

    union all

    select 'condition_era' as cdm_table, 'conditions' as made_of, count(*) as row_count
    from {{ ref('condition_era') }}

    union all

    select 'dose_era' as cdm_table, 'known doses' as made_of, count(*) as row_count
    from {{ ref('dose_era') }}

)

select * from final
order by cdm_table, made_of
