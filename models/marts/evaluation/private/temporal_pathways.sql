-- One row per person and treated condition: the first three classes of drugs that are
-- started in the year from its first occurrence on, in their order.
with

conditions as (

    select
        onsets.cohort,
        onsets.person_number,
        onsets.onset_date,
        treated.concept_id
    from {{ ref('temporal_onsets') }} as onsets
    inner join {{ ref('treated_conditions') }} as treated
        on onsets.concept_number = treated.concept_number

),

drugs as (

    select
        onsets.person_number,
        families.family_concept_id as concept_id,
        min(onsets.onset_date) as onset_date
    from {{ ref('temporal_onsets') }} as onsets
    inner join {{ ref('temporal_concepts') }} as concepts
        on onsets.concept_number = concepts.concept_number
    inner join {{ source('cohorts', 'concept_families') }} as families
        on
            concepts.source_table = families.source_table
            and concepts.concept_id = families.concept_id
    where concepts.source_table = 'drug_exposure'
    group by 1, 2

),

ordered as (

    select
        conditions.cohort,
        conditions.person_number,
        conditions.concept_id,
        drugs.concept_id as drug_concept_id,
        row_number() over (
            partition by conditions.person_number, conditions.concept_id
            -- of one day: by concept, for the sequence must be one
            order by drugs.onset_date, drugs.concept_id
        ) as drug_order
    from conditions
    left join drugs
        on
            conditions.person_number = drugs.person_number
            and conditions.onset_date <= drugs.onset_date
            and {{ days_between('conditions.onset_date', 'drugs.onset_date') }} <= 365

),

final as (

    select
        cohort,
        person_number,
        concept_id,
        max(case when drug_order = 1 then drug_concept_id end) as first_drug,
        max(case when drug_order = 2 then drug_concept_id end) as second_drug,
        max(case when drug_order = 3 then drug_concept_id end) as third_drug
    from ordered
    where drug_order <= 3
    group by 1, 2, 3

)

select * from final
