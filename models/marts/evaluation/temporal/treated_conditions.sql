-- The five most frequent conditions of the training cohort that drugs follow: at least
-- half of those who have one start a drug within thirty days of its first occurrence.
with

onsets as (

    select
        onsets.person_number,
        onsets.onset_date,
        concepts.concept_number,
        concepts.source_table,
        concepts.concept_id
    from {{ ref('temporal_onsets') }} as onsets
    inner join {{ ref('temporal_concepts') }} as concepts
        on onsets.concept_number = concepts.concept_number
    where onsets.cohort = 'train'

),

conditions as (

    select * from onsets
    where source_table = 'condition_occurrence'

),

drugs as (

    select distinct
        person_number,
        onset_date
    from onsets
    where source_table = 'drug_exposure'

),

treated as (

    select distinct
        conditions.person_number,
        conditions.concept_number
    from conditions
    inner join drugs on conditions.person_number = drugs.person_number
    where
        {{ days_between('conditions.onset_date', 'drugs.onset_date') }} between 0 and 30

),

counted as (

    select
        conditions.concept_id,
        conditions.concept_number,
        count(*) as persons,
        count(treated.person_number) as treated_persons
    from conditions
    left join treated
        on
            conditions.person_number = treated.person_number
            and conditions.concept_number = treated.concept_number
    group by 1, 2

),

final as (

    select
        concept_id,
        concept_number,
        persons,
        treated_persons / cast(persons as double) as treated_share
    from counted
    where treated_persons >= persons / 2.0
    order by persons desc, concept_id asc
    limit 5

)

select * from final
