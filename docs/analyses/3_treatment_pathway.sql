-- The first three drugs, in order, that persons take, and how many take them so.
with

first_exposures as (

    select
        person_id,
        drug_concept_id,
        min(drug_exposure_start_date) as first_date
    from drug_exposure
    where drug_concept_id <> 0
    group by person_id, drug_concept_id

),

ordered as (

    select
        person_id,
        drug_concept_id,
        row_number() over (
            partition by person_id
            order by first_date, drug_concept_id
        ) as line
    from first_exposures

),

pathways as (

    select
        person_id,
        max(case when line = 1 then drug_concept_id end) as first_drug,
        max(case when line = 2 then drug_concept_id end) as second_drug,
        max(case when line = 3 then drug_concept_id end) as third_drug
    from ordered
    where line <= 3
    group by person_id

)

select
    coalesce(first_concept.concept_name, cast(first_drug as varchar)) as first_line,
    coalesce(second_concept.concept_name, cast(second_drug as varchar)) as second_line,
    coalesce(third_concept.concept_name, cast(third_drug as varchar)) as third_line,
    count(*) as persons
from pathways
left join concept as first_concept on pathways.first_drug = first_concept.concept_id
left join concept as second_concept on pathways.second_drug = second_concept.concept_id
left join concept as third_concept on pathways.third_drug = third_concept.concept_id
group by 1, 2, 3
order by persons desc, first_line, second_line, third_line
limit 10
