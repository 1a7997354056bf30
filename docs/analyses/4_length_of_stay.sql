-- Days from the start to the end of a visit, by kind of visit.
with

stays as (

    select
        visit_concept_id,
        visit_end_date - visit_start_date as days
    from visit_occurrence

)

select
    coalesce(concept.concept_name, cast(stays.visit_concept_id as varchar)) as visit_name,
    count(*) as visits,
    round(cast(avg(stays.days) as numeric), 2) as mean_days,
    percentile_cont(0.5) within group (order by stays.days) as median_days,
    percentile_cont(0.95) within group (order by stays.days) as days_of_95_per_cent
from stays
left join concept on stays.visit_concept_id = concept.concept_id
group by concept.concept_name, stays.visit_concept_id
order by visits desc, stays.visit_concept_id
